"""Attention as ONNX Runtime's MultiHeadAttention: no transposed copies, no scores in memory.

The operator takes queries, keys and values [B,L,W] as the projections give them, and works head by
head. Its own scale is switched off: it is in the query weights, or still a node before them.
"""

import onnx_ir as ir

from calipso_export.forms.matching import (
    ORT_DOMAIN,
    is_permutation,
    made_by,
    nodes_of,
    only_consumer,
    replace_by,
    reshape,
    static_shape,
    use_ort_domain,
)

_HEADS_FIRST = (0, 2, 1, 3)
_KEYS_TURNED = (0, 2, 3, 1)
_RANK, _RANK_WITH_HEADS = 3, 4


def fuse_attention(graph: ir.Graph) -> int:
    """Replace split heads, MatMul, Softmax, MatMul and merged heads, as `towers.base.attend` traces them."""
    return sum(_fuse(graph, node) for node in nodes_of(graph, "Softmax"))


def _fuse(graph: ir.Graph, softmax: ir.Node) -> bool:
    scores = made_by(softmax.inputs[0], "MatMul")
    weighted = only_consumer(softmax.outputs[0])
    if scores is None or weighted is None or weighted.op_type != "MatMul":
        return False
    query = _before_heads(scores.inputs[0], _HEADS_FIRST)
    key = _before_heads(scores.inputs[1], _KEYS_TURNED)
    value = _before_heads(weighted.inputs[1], _HEADS_FIRST)
    turned = only_consumer(weighted.outputs[0])
    merged = None if turned is None else only_consumer(turned.outputs[0])
    if query is None or key is None or value is None or turned is None or merged is None:
        return False
    if not is_permutation(turned, *_HEADS_FIRST) or merged.op_type != "Reshape":
        return False
    heads, shape = _heads(scores.inputs[0]), static_shape(merged.outputs[0])
    sizes = [size for size in (shape or ())[1:] if size is not None]
    if heads is None or shape is None or len(sizes) != len(shape) - 1 or _pictures(query) != _pictures(key):
        return False
    merging = [_merging(graph, each) for each in (query, key, value)]
    inputs = [
        each if node is None else node.outputs[0] for each, node in zip((query, key, value), merging, strict=True)
    ]
    fused = ir.node("MultiHeadAttention", inputs, {"num_heads": heads, "scale": 1.0}, domain=ORT_DOMAIN)
    # Where the rows become a map again, the Reshape that merges the heads does both.
    further = [] if len(shape) == _RANK else [reshape(graph, fused.outputs[0], -1, *sizes)]
    replace_by(graph, merged.outputs[0], [*filter(None, merging), fused, *further])
    use_ort_domain(graph)
    return True


def _before_heads(value: ir.Value | None, permutation: tuple[int, ...]) -> ir.Value | None:
    """What was reshaped to [B,L,H,E] and then transposed."""
    turned = made_by(value, "Transpose")
    split = (
        made_by(turned.inputs[0], "Reshape") if turned is not None and is_permutation(turned, *permutation) else None
    )
    return None if split is None else split.inputs[0]


def _pictures(value: ir.Value) -> int | None:
    """Static where all pictures ask the same: the operator wants queries of each."""
    return (static_shape(value) or (None,))[0]


def _merging(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    """[B,L,H,E] -> [B,L,W], where heads were apart already, as they are where positions turn them."""
    shape = static_shape(value) or ()
    if len(shape) != _RANK_WITH_HEADS:
        return None
    _, length, heads, size = shape
    return reshape(graph, value, -1, length or -1, (heads or 1) * (size or 1))


def _heads(value: ir.Value | None) -> int | None:
    shape = static_shape(value)
    return shape[1] if shape is not None and len(shape) == _RANK_WITH_HEADS else None
