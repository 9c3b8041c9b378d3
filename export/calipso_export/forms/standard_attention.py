"""Attention as ONNX's own operator (opset 23): one node, so that an engine cannot fuse only a part of it.

It is written where TensorRT and TensorRT for RTX have a kernel for it: 16 bits, heads of 16 to 256 channels, and
queries, keys and values that are three tensors. Elsewhere the products and the Softmax stay as they are: TensorRT for
RTX refuses the operator in fp32.
"""

import onnx_ir as ir

from calipso_export.forms.matching import (
    made_by,
    nodes_of,
    only_consumer,
    replace_by,
    static_shape,
    transpose,
)
from calipso_export.lint.operators import LEAST_HEAD, MOST_HEAD

FIRST_OPSET = 23
OPERATOR = "Attention"
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_KEYS_TURNED, _HEADS_FIRST, _LAST_TWO = (0, 2, 3, 1), (0, 2, 1, 3), (0, 1, 3, 2)
_RANK = 4


def standard_attention(graph: ir.Graph) -> int:
    """Replace MatMul, Softmax and MatMul of 16-bit tensors [B,H,L,E], with nothing in between.

    Returns:
        How many attentions it replaced.
    """
    return sum(_replace(graph, softmax) for softmax in nodes_of(graph, "Softmax"))


def decompose_attention(graph: ir.Graph) -> int:
    """Do the opposite: write every Attention as the products and the Softmax that it stands for.

    Of what `standard_attention` writes alone, with scale 1 and without a past.

    Returns:
        How many attentions it replaced.
    """
    return sum(_decompose(graph, node) for node in nodes_of(graph, OPERATOR))


def _replace(graph: ir.Graph, softmax: ir.Node) -> bool:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    scores = made_by(softmax.inputs[0], "MatMul") if axis in (-1, _RANK - 1) else None
    weighted = only_consumer(softmax.outputs[0])
    if scores is None or only_consumer(scores.outputs[0]) is None or weighted is None or weighted.op_type != "MatMul":
        return False
    query, turned, value = scores.inputs[0], scores.inputs[1], weighted.inputs[1]
    turning = made_by(turned, "Transpose")
    if query is None or turning is None or value is None or weighted.inputs[0] is not softmax.outputs[0]:
        return False
    if not _has_kernel(query) or not _of_one_batch(query, turning.outputs[0], value):
        return False
    turned_back = _turned_back(turning)
    if turned_back is None or value is query:
        return False
    name = (softmax.name or "").replace("/Softmax", f"/{OPERATOR}")
    fused = ir.node(OPERATOR, [query, turned_back.outputs[0], value], {"scale": 1.0}, name=name)
    replace_by(graph, weighted.outputs[0], [turned_back, fused])
    return True


def _has_kernel(query: ir.Value) -> bool:
    size = (static_shape(query) or (None,))[-1]
    return query.dtype in _HALF and size is not None and LEAST_HEAD <= size <= MOST_HEAD


def _of_one_batch(*values: ir.Value) -> bool:
    """Whether all are [B,H,_,_] of the same B: queries that are the same for every picture have a batch of 1."""
    shapes = [tuple(map(str, value.shape or ())) for value in values]
    return {len(shape) for shape in shapes} == {_RANK} and len({shape[:2] for shape in shapes}) == 1


def _turned_back(turning: ir.Node) -> ir.Node | None:
    """A Transpose to keys [B,H,L,E], from what was turned to [B,H,E,L]."""
    source, permutation = turning.inputs[0], tuple(turning.attributes["perm"].as_ints())
    if source is None or source.shape is None or permutation != _KEYS_TURNED:
        return None
    node = transpose(source, *_HEADS_FIRST)
    node.name = f"{turning.name}/keys"
    node.outputs[0].type, node.outputs[0].shape = source.type, ir.Shape([source.shape[each] for each in _HEADS_FIRST])
    return node


def _decompose(graph: ir.Graph, node: ir.Node) -> bool:
    query, key, value = node.inputs
    if query is None or key is None or value is None:
        return False
    turned = transpose(key, *_LAST_TWO)
    scores = ir.node("MatMul", [query, turned.outputs[0]])
    softmax = ir.node("Softmax", [scores.outputs[0]], {"axis": -1})
    weighted = ir.node("MatMul", [softmax.outputs[0], value])
    nodes, old = [turned, scores, softmax, weighted], node.outputs[0]
    for place, each in enumerate(nodes):
        each.name, each.outputs[0].name = f"{node.name}/{place}", f"{old.name}.{place}"
        each.outputs[0].type = old.type
    name = old.name
    replace_by(graph, old, nodes)
    if not weighted.outputs[0].is_graph_output():
        # Values keep their names; an output's was handed on.
        old.name, weighted.outputs[0].name = f"{name}.before", name
    return True
