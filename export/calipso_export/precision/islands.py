"""Which nodes stay in fp32 whatever the precision: those where CLIP's answers die in 16 bits.

LayerNormalization sums squares, softmax and the cache's exp live on small differences of large
numbers, and the head multiplies by a scale of 100 what the embedding still tells apart.
"""

import onnx
import onnx_ir as ir

# The part of the graph that encodes; what is behind it is the head. Node names start with their module.
TOWER = "tower"
_FP32_OPERATORS = frozenset({"LayerNormalization", "Softmax", "Exp", "ReduceL2", "Clip"})
# They only move numbers: exact in any type.
LAYOUT_OPERATORS = frozenset(
    {"Reshape", "Transpose", "Slice", "Concat", "Split", "Gather", "Squeeze", "Unsqueeze", "Expand", "Identity"}
)
# They carry the weights of the blocks.
WORK_OPERATORS = frozenset({"MatMul", "Conv", "Gemm"})


def is_fp32_island(node: ir.Node) -> bool:
    """Whether a node is one of those above."""
    return node.op_type in _FP32_OPERATORS or not in_tower(node)


def in_tower(node: ir.Node) -> bool:
    """Whether a node belongs to the encoder."""
    return (node.name or "").startswith(TOWER)


def layer_of(name: str) -> str:
    """The module that a node belongs to: its name without the operator."""
    return name.rpartition("/")[0] or name


def why_not_typed(node: ir.Node, kind: ir.DataType, opset: int) -> str | None:
    """Why an operator cannot compute in a type at an opset, or None if it can."""
    if node.domain not in ("", "ai.onnx"):
        return None
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    wanted = f"tensor({kind.name.lower()})"
    allowed = {name for constraint in schema.type_constraints for name in constraint.allowed_type_strs}
    if wanted in allowed or not allowed:
        return None
    newest = onnx.defs.get_schema(node.op_type)
    known = any(wanted in constraint.allowed_type_strs for constraint in newest.type_constraints)
    since = f"before opset {newest.since_version}" if known else "in any opset"
    return f"{node.op_type} takes no {kind.name.lower()} {since}"
