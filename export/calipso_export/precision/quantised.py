"""int8 and fp8: weights of the blocks in eight bits, and the inputs of their products too where ranges are known.

QuantizeLinear and DequantizeLinear in pairs around what is computed in eight bits, symmetric (zero
point 0) as TensorRT demands, one scale per output channel of a weight and one per activation.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.forms.matching import add_constant, constant
from calipso_export.precision.islands import WORK_OPERATORS, in_tower

# The smallest scale: of a channel or an activation that is all zeros.
_TINY = 1e-12
_CONV_OUT_AXIS, _MATMUL_OUT_AXIS = 0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised:
    """A number format of eight bits.

    Attributes:
        kind: of the stored numbers.
        largest: what the largest magnitude of a channel or an activation becomes.
    """

    kind: ir.DataType
    largest: float


INT8 = Quantised(kind=ir.DataType.INT8, largest=127.0)
# 7 bits in 8: CPUs without VNNI add two products in 16 bits, which 8-bit weights overflow.
INT8_REDUCED = Quantised(kind=ir.DataType.INT8, largest=63.0)
FP8 = Quantised(kind=ir.DataType.FLOAT8E4M3FN, largest=448.0)


def quantisable(graph: ir.Graph) -> Iterator[ir.Node]:
    """The products of the tower's blocks with a constant matrix or kernel.

    Not the first (the patches or the stem: few operations on raw pixels), and not the last, which
    projects to the joint space: what is lost there nothing levels out.
    """
    found = [
        node
        for node in graph
        if node.op_type in WORK_OPERATORS and in_tower(node) and constant(node.inputs[1]) is not None
    ]
    yield from found[1:-1]


def quantise(
    graph: ir.Graph,
    form: Quantised,
    *,
    ranges: Mapping[str, float] | None,
    pinned: Collection[str] = (),
) -> list[str]:
    """Quantise a graph in place.

    Args:
        graph: of fp32.
        form: the number format.
        ranges: by name of a value, its largest magnitude; None leaves the activations as they are.
        pinned: names of nodes that are left out.

    Returns:
        Names of the nodes that were quantised.
    """
    activations: dict[str, ir.Value] = {}
    changed = []
    for node in tuple(quantisable(graph)):
        if node.name in pinned:
            continue
        value = node.inputs[0]
        if ranges is not None and value is not None:
            name = str(value.name)
            if name not in activations:
                limit = INT8.largest if form.kind == ir.DataType.INT8 else form.largest
                activations[name] = _quantised_activation(graph, value, ranges[name] / limit, form.kind, node)
            node.replace_input_with(0, activations[name])
        node.replace_input_with(1, _quantised_weight(graph, node, form))
        changed.append(str(node.name))
    return changed


def out_axis(node: ir.Node) -> int:
    """Which axis of a node's weight holds its output channels."""
    if node.op_type == "MatMul":
        return _MATMUL_OUT_AXIS
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    return _CONV_OUT_AXIS if node.op_type == "Conv" or transposed else _MATMUL_OUT_AXIS


def quantised_array(
    array: npt.NDArray[np.float32], form: Quantised, axis: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:
    """A weight in eight bits, and one scale per channel."""
    others = tuple(index for index in range(array.ndim) if index != axis)
    peak = np.abs(array).max(axis=others)
    scale = np.maximum(peak / form.largest, _TINY).astype(np.float32)
    shape = [1] * array.ndim
    shape[axis] = -1
    scaled = array / scale.reshape(shape)
    if form.kind == ir.DataType.INT8:
        return np.clip(np.rint(scaled), -form.largest, form.largest).astype(np.int8), scale
    return np.clip(scaled, -form.largest, form.largest).astype(ml_dtypes.float8_e4m3fn), scale


def _quantised_weight(graph: ir.Graph, node: ir.Node, form: Quantised) -> ir.Value:
    weight = node.inputs[1]
    array = None if weight is None else constant(weight)
    if weight is None or array is None:
        message = f"{node.name} has no constant weight"
        raise ValueError(message)
    axis = out_axis(node)
    stored, scale = quantised_array(array, form, axis)
    name = f"{weight.name}.{form.kind.name.lower()}"
    dequantise = ir.node(
        "DequantizeLinear",
        [
            add_constant(graph, name, stored),
            add_constant(graph, f"{name}.scale", scale),
            _zero(graph, form.kind, scale.shape),
        ],
        {"axis": axis},
        name=f"{node.name}/dequantise_weight",
    )
    _describe(dequantise, f"{weight.name}.dequantised", weight, ir.DataType.FLOAT)
    graph.insert_before(node, dequantise)
    return dequantise.outputs[0]


def _quantised_activation(
    graph: ir.Graph, value: ir.Value, scale: float, kind: ir.DataType, reader: ir.Node
) -> ir.Value:
    step = add_constant(graph, f"{value.name}.scale", np.array(max(scale, _TINY), np.float32))
    zero = _zero(graph, kind, ())
    producer = value.producer()
    owner = reader.name if producer is None else producer.name
    quantise_ = ir.node("QuantizeLinear", [value, step, zero], name=f"{owner}/quantise")
    _describe(quantise_, f"{value.name}.quantised", value, kind)
    dequantise = ir.node("DequantizeLinear", [quantise_.outputs[0], step, zero], name=f"{owner}/dequantise")
    _describe(dequantise, f"{value.name}.dequantised", value, ir.DataType.FLOAT)
    if producer is None:
        graph.insert_before(reader, [quantise_, dequantise])
    else:
        graph.insert_after(producer, [quantise_, dequantise])
    return dequantise.outputs[0]


def _describe(node: ir.Node, name: str, like: ir.Value, kind: ir.DataType) -> None:
    output = node.outputs[0]
    output.name, output.shape, output.dtype = name, like.shape, kind


def _zero(graph: ir.Graph, kind: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    # Written out: without it QuantizeLinear would give uint8.
    size = "x".join(map(str, shape)) or "scalar"
    stored = np.int8 if kind == ir.DataType.INT8 else ml_dtypes.float8_e4m3fn
    return add_constant(graph, f"zero_{kind.name.lower()}_{size}", np.zeros(shape, stored))
