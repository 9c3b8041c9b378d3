"""Quantised products as one operator of ONNX Runtime, in its graph for CPUs."""

import dataclasses

import numpy as np
import onnx_ir as ir

from calipso_export.forms.matching import (
    ORT_DOMAIN,
    add_constant,
    constant,
    is_permutation,
    made_by,
    nodes_of,
    only_consumer,
    replace_by,
    scalar,
    transpose,
    use_ort_domain,
)

# Of int8, moved into uint8: x86 multiplies unsigned activations by signed weights.
_MIDDLE = 128
_CHANNELS_LAST, _CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
# Of each number by itself: they may stand before a Transpose as well as behind it.
_ELEMENTWISE = ("Gelu", "QuickGelu", "Relu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Activation:
    """uint8 values, channels last, with their scale and zero point."""

    values: ir.Value
    scale: ir.Value
    zero: ir.Value


def is_product(node: ir.Node) -> bool:
    """Whether a node is a matrix product: a MatMul, or a convolution of single positions."""
    weight = node.inputs[1]
    if node.op_type != "Conv" or weight is None or weight.shape is None:
        return node.op_type == "MatMul"
    given = {name: attribute.as_ints() for name, attribute in node.attributes.items() if name in ("strides", "pads")}
    grouped = "group" in node.attributes and node.attributes["group"].as_int() != 1
    plain = set(given.get("strides", ())) <= {1} and not any(given.get("pads", ())) and not grouped
    return plain and tuple(weight.shape)[2:] == (1, 1)


def fuse_integer_products(graph: ir.Graph) -> int:
    """Replace each product between two DequantizeLinear nodes, and its bias, by MatMulIntegerToFloat, in place.

    ONNX Runtime finds such a product by itself only where no other one reads its activation: the projections to
    queries, keys and values, and the two halves of a gated MLP, it would compute in fp32 and restore their weights
    at every call. Convolutions of single positions are faster as products of rows, their two transposes included, than
    in fp32. Activations become uint8 around 128: the same steps, so the numbers are the same.

    Returns:
        How many products it found.
    """
    read: dict[tuple[str, str], _Activation] = {}
    count = 0
    for product in nodes_of(graph, "MatMul", "Conv"):
        activation, weight = (made_by(value, "DequantizeLinear") for value in product.inputs[:2])
        if activation is None or weight is None or not is_product(product) or constant(weight.inputs[0]) is None:
            continue
        quantise = made_by(activation.inputs[0], "QuantizeLinear")
        if quantise is None or scalar(activation.inputs[2]) != 0:
            continue
        key = str(activation.outputs[0].name), product.op_type
        if key not in read:
            read[key] = _unsigned(graph, quantise, of_maps=product.op_type == "Conv")
        _fuse(graph, product, read[key], weight)
        use_ort_domain(graph)
        count += 1
    return count


def _fuse(graph: ir.Graph, product: ir.Node, activation: _Activation, weight: ir.Node) -> None:
    stored, scales, zeros = weight.inputs
    nodes: list[ir.Node] = []
    if product.op_type == "Conv":
        last, bias = product.outputs[0], product.inputs[2] if len(product.inputs) > 2 else None  # noqa: PLR2004
        # The bytes stay those of the portable graph; the engine transposes them once, when it loads.
        nodes.append(ir.node("Flatten", [stored], {"axis": 1}))
        nodes.append(transpose(nodes[-1].outputs[0], 1, 0))
        stored = nodes[-1].outputs[0]
    else:
        last, bias = _with_bias(product, scales)
    inputs = [activation.values, stored, activation.scale, scales, activation.zero, zeros, bias]
    fused = ir.node("MatMulIntegerToFloat", inputs[: 6 if bias is None else 7], domain=ORT_DOMAIN, name=product.name)
    nodes.append(fused)
    if product.op_type == "Conv":
        nodes.append(transpose(fused.outputs[0], *_CHANNELS_FIRST))
    replace_by(graph, last, nodes)


def _with_bias(product: ir.Node, scales: ir.Value | None) -> tuple[ir.Value, ir.Value | None]:
    """Of a MatMul: where it ends, and what is added to each channel there: the operator takes it as an input."""
    last = product.outputs[0]
    adding = only_consumer(last)
    if adding is None or adding.op_type != "Add":
        return last, None
    other = next((value for value in adding.inputs if value is not last), None)
    array, width = constant(other), None if scales is None else scales.shape
    return (
        (adding.outputs[0], other) if array is not None and width is not None and array.shape == width else (last, None)
    )


def _unsigned(graph: ir.Graph, quantise: ir.Node, *, of_maps: bool) -> _Activation:
    """What a QuantizeLinear to int8 reads, in uint8."""
    value, scale, _ = quantise.inputs
    if value is None or scale is None:
        message = f"{quantise.name} lacks an input"
        raise ValueError(message)
    name = f"{value.name}.{'rows' if of_maps else 'unsigned'}"
    nodes = _rows(value) if of_maps else []
    read = nodes[-1].outputs[0] if nodes else value
    zero = add_constant(graph, "zero_uint8_scalar", np.array(_MIDDLE, np.uint8))
    nodes.append(ir.node("QuantizeLinear", [read, scale, zero], name=f"{quantise.name}_unsigned"))
    output = nodes[-1].outputs[0]
    output.name, output.dtype = name, ir.DataType.UINT8
    graph.insert_before(quantise, nodes)
    return _Activation(values=output, scale=scale, zero=zero)


def _rows(value: ir.Value) -> list[ir.Node]:
    """Channels of maps last; what already was there before an element-wise operator is taken from there."""
    producer = value.producer()
    if producer is not None and producer.op_type in _ELEMENTWISE and only_consumer(value) is not None:
        before = made_by(producer.inputs[0], "Transpose")
        if before is not None and is_permutation(before, *_CHANNELS_FIRST):
            return [ir.node(producer.op_type, [before.inputs[0]], domain=producer.domain, name=f"{producer.name}/rows")]
    return [transpose(value, *_CHANNELS_LAST)]
