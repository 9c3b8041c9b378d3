"""Which nodes stay in fp32 whatever the precision: those where CLIP's answers die in 16 bits.

LayerNormalization sums squares, CALIP's softmax and the cache's exp live on small differences of large
numbers, and the head multiplies by a scale of 100 what the embedding still tells apart.

The Softmax of the encoder's attention is none of them: a product has rounded what it reads, and a product
reads what it gives, so casts in between change no bit where an engine computes a 16-bit Softmax in fp32.
They can keep engines from running an attention as one kernel.
"""

import onnx
import onnx_ir as ir

from calipso_export.forms.matching import made_by, only_consumer

# The part of the graph that encodes; what is behind it is the head. Node names start with their module.
# The text tower's begin with the same word.
TOWER, TEXT_TOWER = "tower", "tower_text"
_FP32_OPERATORS = frozenset({"LayerNormalization", "Softmax", "Exp", "ReduceL2", "Clip"})
# They only move numbers: exact in any type.
LAYOUT_OPERATORS = frozenset(
    {"Reshape", "Transpose", "Slice", "Concat", "Split", "Gather", "Squeeze", "Unsqueeze", "Expand", "Identity"}
)
# They carry the weights of the blocks.
WORK_OPERATORS = frozenset({"MatMul", "Conv", "Gemm"})


def is_fp32_island(node: ir.Node) -> bool:
    """Whether a node is one of those above."""
    return not in_tower(node) or (node.op_type in _FP32_OPERATORS and not _in_attention(node))


def _in_attention(node: ir.Node) -> bool:
    """Whether a node is a Softmax right between two products of the encoder."""
    if node.op_type != "Softmax":
        return False
    scores, reader = made_by(node.inputs[0], "MatMul"), only_consumer(node.outputs[0])
    if scores is None or reader is None or reader.op_type != "MatMul":
        return False
    return in_tower(scores) and in_tower(reader)


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
