"""int8 and fp8: weights of the blocks in eight bits, and the inputs of their products too where ranges are known.

QuantizeLinear and DequantizeLinear in pairs around what is computed in eight bits, symmetric (zero
point 0) as TensorRT demands, one scale per output channel of a weight and one per activation.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.forms.matching import add_constant, constant, made_by, static_shape
from calipso_export.precision.islands import WORK_OPERATORS, in_tower
from calipso_export.precision.pair_sums import PAIR_LIMIT, channel_peaks, is_depthwise

# The smallest scale: of a channel or an activation that is all zeros.
_TINY = 1e-12
# TensorRT has no fp8 kernel for larger convolutions, and no fast one for those in groups (release notes of 10.13.3,
# limitations). TensorRT for RTX 1.7 restores the weights of larger ones whenever the engine runs: seen up to 9x9.
_MOST_FP8_TAPS = 32
_CONV_OUT_AXIS, _MATMUL_OUT_AXIS = 0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised:
    """A number format of eight bits.

    Attributes:
        kind: of the stored numbers.
        largest: what the largest magnitude of a channel or an activation becomes.
        pair_safe: whether weights are scaled so that no pair of products can overflow 16 bits, see `pair_sums`.
        every_convolution: whether convolutions in groups and those with large kernels are quantised too.
    """

    kind: ir.DataType
    largest: float
    pair_safe: bool = False
    every_convolution: bool = True

    def takes(self, node: ir.Node) -> bool:
        """Whether it quantises a product."""
        if self.every_convolution or node.op_type != "Conv":
            return True
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        kernel = static_shape(node.inputs[1]) or ()
        return groups == 1 and math.prod(size or 1 for size in kernel[2:]) <= _MOST_FP8_TAPS


INT8 = Quantised(kind=ir.DataType.INT8, largest=127.0)
INT8_PAIR_SAFE = dataclasses.replace(INT8, pair_safe=True)
FP8 = Quantised(kind=ir.DataType.FLOAT8E4M3FN, largest=448.0, every_convolution=False)


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
        if node.name in pinned or not form.takes(node):
            continue
        value = node.inputs[0]
        if ranges is not None and value is not None:
            name = str(value.name)
            if name not in activations:
                activations[name] = _quantised_activation(graph, value, ranges[name] / form.largest, form.kind, node)
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
    array: npt.NDArray[np.float32], form: Quantised, axis: int, *, depthwise: bool = False
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:
    """Return a weight in eight bits, and one float32 scale per output channel.

    Args:
        array: float32 weight.
        form: the number format.
        axis: which axis holds the output channels.
        depthwise: whether it belongs to a depthwise convolution.
    """
    shape = [1] * array.ndim
    shape[axis] = -1
    if form.pair_safe:
        # Rounding adds at most 1 to the sum of two weights: 127 becomes 128, which is the limit of a pair.
        peak = channel_peaks(array, axis, depthwise=depthwise)
    else:
        peak = np.abs(array).max(axis=tuple(index for index in range(array.ndim) if index != axis))
    scale = np.maximum(peak / form.largest, _TINY).astype(np.float32)
    scaled = array / scale.reshape(shape)
    if form.kind == ir.DataType.INT8:
        return np.clip(np.rint(scaled), -form.largest, form.largest).astype(np.int8), scale
    return np.clip(scaled, -form.largest, form.largest).astype(ml_dtypes.float8_e4m3fn), scale


def quantised_weight(node: ir.Node, form: Quantised) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:
    """Return a node's constant weight as `quantised_array` does.

    Raises:
        ValueError: its weight is no constant.
    """
    array = constant(node.inputs[1])
    if array is None:
        message = f"{node.name} has no constant weight"
        raise ValueError(message)
    return quantised_array(array, form, out_axis(node), depthwise=is_depthwise(node))


def is_pair_safe(graph: ir.Graph) -> bool:
    """Whether no pair of a graph's int8 weights can overflow 16 bits, whatever activations they are multiplied by."""
    for node in graph:
        dequantise = made_by(node.inputs[1], "DequantizeLinear") if node.op_type in WORK_OPERATORS else None
        stored = None if dequantise is None else constant(dequantise.inputs[0])
        if stored is None or stored.dtype != np.int8:
            continue
        peaks = channel_peaks(stored.astype(np.int16), out_axis(node), depthwise=is_depthwise(node))
        if peaks.max() > PAIR_LIMIT:
            return False
    return True


def _quantised_weight(graph: ir.Graph, node: ir.Node, form: Quantised) -> ir.Value:
    weight = node.inputs[1]
    if weight is None:
        message = f"{node.name} has no weight"
        raise ValueError(message)
    stored, scale = quantised_weight(node, form)
    name = f"{weight.name}.{form.kind.name.lower()}"
    dequantise = ir.node(
        "DequantizeLinear",
        [
            add_constant(graph, name, stored),
            add_constant(graph, f"{name}.scale", scale),
            add_constant(graph, f"{name}.zero", np.zeros(scale.shape, stored.dtype)),
        ],
        {"axis": out_axis(node)},
        name=f"{node.name}/dequantise_weight",
    )
    _describe(dequantise, f"{weight.name}.dequantised", weight, ir.DataType.FLOAT)
    graph.insert_before(node, dequantise)
    return dequantise.outputs[0]


def _quantised_activation(
    graph: ir.Graph, value: ir.Value, scale: float, kind: ir.DataType, reader: ir.Node
) -> ir.Value:
    step = add_constant(graph, f"{value.name}.scale", np.array(max(scale, _TINY), np.float32))
    stored = np.int8 if kind == ir.DataType.INT8 else ml_dtypes.float8_e4m3fn
    # Written out: without it QuantizeLinear would give uint8.
    zero = add_constant(graph, f"zero_{kind.name.lower()}_scalar", np.zeros((), stored))
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
