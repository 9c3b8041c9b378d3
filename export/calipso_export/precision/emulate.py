"""A 16-bit or fp8 graph as one that any engine computes alike: fp32 arithmetic, every tensor rounded to its own type.

ONNX Runtime has no 16-bit kernels on x86: it puts casts around every node and then removes those that
cancel, so that a chain of fp16 nodes runs in fp32 and an overflow on the way is never seen. bf16 it does
not run at all. Explicit casts behind every node are not removed. Products are summed in fp32, as
tensor cores sum them.
"""

import numpy as np
import onnx_ir as ir

from calipso_export.forms.matching import add_constant, constant, replace_by
from calipso_export.forms.standard_attention import decompose_attention
from calipso_export.precision.islands import LAYOUT_OPERATORS

_FP8, _FP8_LARGEST = ir.DataType.FLOAT8E4M3FN, 448.0
_ENDS = (("lowest", -1.0), ("largest", 1.0))
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def needs_emulation(model: ir.Model) -> bool:
    """Whether a graph has 16-bit or fp8 tensors inside."""
    values = [value for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None]
    return any(value.dtype in (*_HALVES, _FP8) for value in values)


def emulate(model: ir.Model) -> ir.Model:
    """Turn a graph with 16-bit or fp8 tensors into its emulation, in place; values keep their names."""
    graph = model.graph
    # What a kernel rounds on the way is rounded here, as of the products and the Softmax that the operator stands for.
    decompose_attention(graph)
    for value in graph.initializers.values():
        _widen(value)
    for value in graph.inputs:
        if value.dtype in _HALVES:
            _round_input(graph, value)
    for node in tuple(graph):
        _round_outputs(graph, node)
    for node in tuple(graph):
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype == _FP8:
            _spell_out(graph, node, _quantised(graph, node))
        elif node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].dtype == _FP8:
            _spell_out(graph, node, _dequantised(graph, node))
    return model


def _round_outputs(graph: ir.Graph, node: ir.Node) -> None:
    if node.op_type == "Cast" and node.attributes["to"].as_int() in (kind.value for kind in _HALVES):
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)
    for output in node.outputs:
        if output.dtype in _HALVES:
            _round_output(graph, node, output)


def _quantised(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    divide = ir.node("Div", [node.inputs[0], _scale(graph, node)])
    low, high = (add_constant(graph, f"fp8_{name}", np.array(sign * _FP8_LARGEST, np.float32)) for name, sign in _ENDS)
    clip = ir.node("Clip", [divide.outputs[0], low, high])
    return [divide, clip, ir.node("Cast", [clip.outputs[0]], {"to": _FP8.value})]


def _dequantised(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    wide = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.FLOAT.value})
    return [wide, ir.node("Mul", [wide.outputs[0], _scale(graph, node)])]


def _scale(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """A node's scale, along its axis where there is one per channel."""
    scale, shape = node.inputs[1], node.inputs[0].shape if node.inputs[0] is not None else None
    array = constant(scale)
    if array is None or array.ndim == 0 or shape is None:
        return scale
    sizes = [1] * len(shape)
    sizes[node.attributes["axis"].as_int()] = -1
    return add_constant(graph, f"{node.name}.scale_along", array.reshape(sizes))


def _spell_out(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    for place, each in enumerate(nodes):
        each.name = f"{node.name}/{place}"
        each.outputs[0].name = f"{node.outputs[0].name}.{place}"
        each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    old = node.outputs[0]
    if not old.is_graph_output():
        # An output's name is handed on anyway.
        nodes[-1].outputs[0].name, old.name = old.name, f"{old.name}.before"
    replace_by(graph, old, nodes)


def _widen(value: ir.Value) -> None:
    """A constant as fp32, which holds every 16-bit number."""
    array = constant(value)
    if value.dtype in _HALVES and array is not None:
        value.const_value = ir.tensor(np.asarray(array.astype(np.float32), order="C"), name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _round_input(graph: ir.Graph, value: ir.Value) -> None:
    readers = list(value.uses())
    node = _cast(value, ir.DataType.FLOAT, f"{value.name}.rounded")
    graph.insert_before(next(iter(graph)), node)
    for use in readers:
        use.node.replace_input_with(use.idx, node.outputs[0])


def _round_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    kind = value.dtype
    if kind is None or (node.op_type in LAYOUT_OPERATORS and not value.is_graph_output()):
        value.type = ir.TensorType(ir.DataType.FLOAT)
        return
    name, readers = value.name, list(value.uses())
    value.name, value.type = f"{name}.exact", ir.TensorType(ir.DataType.FLOAT)
    down = _cast(value, kind, f"{name}.rounded")
    up = _cast(down.outputs[0], ir.DataType.FLOAT, str(name))
    graph.insert_after(node, [down, up])
    for use in readers:
        use.node.replace_input_with(use.idx, up.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            # An output keeps its type: it is rounded, and not widened again.
            down.outputs[0].name, up.outputs[0].name = name, f"{name}.widened"
            graph.outputs[index] = down.outputs[0]


def _cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": kind.value}, name=f"{name}/cast")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].dtype = name, value.shape, kind
    return node
