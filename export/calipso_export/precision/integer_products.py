"""Quantised products as one operator of ONNX Runtime, in its graph for CPUs."""

import dataclasses

import numpy as np
import onnx_ir as ir

from calipso_export.forms.matching import (
    ORT_DOMAIN,
    TO_CHANNELS,
    TO_ROWS,
    add_constant,
    constant,
    indices,
    is_permutation,
    made_by,
    nodes_of,
    only_consumer,
    replace_by,
    scalar,
    static_shape,
    transpose,
    use_ort_domain,
)

# Of int8, moved into uint8: x86 multiplies unsigned activations by signed weights.
_MIDDLE = 128
_RANK = 4
# Of each number by itself: they may stand before a Transpose as well as behind it.
_ELEMENTWISE = ("Gelu", "QuickGelu", "Relu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Window:
    """What a convolution reads for one position.

    Attributes:
        kernel: height and width.
        strides: down and across.
        pads: above, left, below, right.
        size: height and width of what it makes.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def is_position(self) -> bool:
        """Whether it is just the position itself."""
        return {*self.kernel, *self.strides} == {1} and not any(self.pads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Activation:
    """uint8 values, channels last, with their scale and zero point."""

    values: ir.Value
    scale: ir.Value
    zero: ir.Value


def is_product(node: ir.Node) -> bool:
    """Whether a node is a matrix product of rows: a MatMul, or a convolution of all channels at once."""
    return node.op_type == "MatMul" or _window(node) is not None


def fuse_integer_products(graph: ir.Graph) -> int:
    """Replace each product between two DequantizeLinear nodes, and its bias, by MatMulIntegerToFloat, in place.

    ONNX Runtime finds such a product by itself only where no other one reads its activation: the projections to
    queries, keys and values, and the two halves of a gated MLP, it would compute in fp32 and restore their weights
    at every call. Convolutions it computes in eight bits only where their sums are quantised too. As products of rows,
    which hold all that a position is made of, they keep their fp32 sums and are faster than in fp32, transposes and
    copies included. Activations become uint8 around 128: the same steps, so the numbers are the same.

    Returns:
        How many products it found.
    """
    read: dict[tuple[str, _Window | None], _Activation] = {}
    count = 0
    for product in nodes_of(graph, "MatMul", "Conv"):
        activation, weight = (made_by(value, "DequantizeLinear") for value in product.inputs[:2])
        window = _window(product)
        if product.op_type == "Conv" and window is None:
            continue
        if activation is None or weight is None or constant(weight.inputs[0]) is None:
            continue
        quantise = made_by(activation.inputs[0], "QuantizeLinear")
        if quantise is None or scalar(activation.inputs[2]) != 0:
            continue
        key = str(activation.outputs[0].name), window
        if key not in read:
            read[key] = _unsigned(graph, quantise, window)
        _fuse(graph, product, read[key], weight)
        use_ort_domain(graph)
        count += 1
    return count


def _window(node: ir.Node) -> _Window | None:
    """Of a convolution of all channels at once; None of any other, and where sizes are not known."""
    weight, made = node.inputs[1], static_shape(node.outputs[0])
    kernel = None if weight is None else static_shape(weight)
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type != "Conv" or kernel is None or made is None or given.get("group", 1) != 1:
        return None
    if len(kernel) != _RANK or None in (*kernel, *made[2:]) or given.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    if set(given.get("dilations", ())) - {1}:
        return None
    return _Window(
        kernel=tuple(size or 0 for size in kernel[2:]),
        strides=tuple(given.get("strides", (1, 1))),
        pads=tuple(given.get("pads", (0, 0, 0, 0))),
        size=tuple(size or 0 for size in made[2:]),
    )


def _fuse(graph: ir.Graph, product: ir.Node, activation: _Activation, weight: ir.Node) -> None:
    stored, scales, zeros = weight.inputs
    nodes: list[ir.Node] = []
    if product.op_type == "Conv":
        last, bias = product.outputs[0], product.inputs[2] if len(product.inputs) > 2 else None  # noqa: PLR2004
        # The bytes stay those of the portable graph; the engine brings them into order once, when it loads.
        nodes.append(ir.node("Transpose", [stored], {"perm": TO_ROWS}))
        nodes.append(ir.node("Flatten", [nodes[-1].outputs[0]], {"axis": 1}))
        nodes.append(transpose(nodes[-1].outputs[0], 1, 0))
        stored = nodes[-1].outputs[0]
    else:
        last, bias = _with_bias(product, scales)
    inputs = [activation.values, stored, activation.scale, scales, activation.zero, zeros, bias]
    fused = ir.node("MatMulIntegerToFloat", inputs[: 6 if bias is None else 7], domain=ORT_DOMAIN, name=product.name)
    nodes.append(fused)
    if product.op_type == "Conv":
        nodes.append(transpose(fused.outputs[0], *TO_CHANNELS))
    replace_by(graph, last, nodes)


def _with_bias(product: ir.Node, scales: ir.Value | None) -> tuple[ir.Value, ir.Value | None]:
    """Of a MatMul: where it ends, and what is added to each channel there: the operator takes it as an input."""
    last = product.outputs[0]
    adding = only_consumer(last)
    if adding is None or adding.op_type != "Add":
        return last, None
    other = next((value for value in adding.inputs if value is not last), None)
    array, widths = constant(other), constant(scales)
    if array is None or widths is None or array.shape != widths.shape:
        return last, None
    return adding.outputs[0], other


def _unsigned(graph: ir.Graph, quantise: ir.Node, window: _Window | None) -> _Activation:
    """What a QuantizeLinear to int8 reads, in uint8; of maps, rows of all that a position is made of."""
    value, scale, _ = quantise.inputs
    if value is None or scale is None:
        message = f"{quantise.name} lacks an input"
        raise ValueError(message)
    nodes = [] if window is None else _channels_last(value)
    read = nodes[-1].outputs[0] if nodes else value
    zero = add_constant(graph, "zero_uint8_scalar", np.array(_MIDDLE, np.uint8))
    nodes.append(ir.node("QuantizeLinear", [read, scale, zero], name=f"{quantise.name}_unsigned"))
    nodes[-1].outputs[0].dtype = ir.DataType.UINT8
    if window is not None and not window.is_position:
        nodes += _gathered(graph, nodes[-1].outputs[0], window, zero)
    graph.insert_before(quantise, nodes)
    return _Activation(values=nodes[-1].outputs[0], scale=scale, zero=zero)


def _gathered(graph: ir.Graph, maps: ir.Value, window: _Window, zero: ir.Value) -> list[ir.Node]:
    """[B,H,W,C] -> [B,h,w,kernel x C]: the neighbours of each position side by side."""
    nodes: list[ir.Node] = []
    if any(window.pads):
        above, left, below, right = window.pads
        nodes.append(ir.node("Pad", [maps, indices(graph, 0, above, left, 0, 0, below, right, 0), zero]))
        maps = nodes[-1].outputs[0]
    axes, steps = indices(graph, 1, 2), indices(graph, *window.strides)
    for place in np.ndindex(*window.kernel):
        ends = (
            first + step * (size - 1) + 1 for first, step, size in zip(place, window.strides, window.size, strict=True)
        )
        nodes.append(ir.node("Slice", [maps, indices(graph, *place), indices(graph, *ends), axes, steps]))
    parts = [node.outputs[0] for node in nodes if node.op_type == "Slice"]
    return [*nodes, ir.node("Concat", parts, {"axis": 3})]


def _channels_last(value: ir.Value) -> list[ir.Node]:
    """Channels of maps last; what already was there before an element-wise operator is taken from there."""
    producer = value.producer()
    if producer is not None and producer.op_type in _ELEMENTWISE and only_consumer(value) is not None:
        before = made_by(producer.inputs[0], "Transpose")
        if before is not None and is_permutation(before, *TO_CHANNELS):
            return [ir.node(producer.op_type, [before.inputs[0]], domain=producer.domain, name=f"{producer.name}/rows")]
    return [transpose(value, *TO_ROWS)]
