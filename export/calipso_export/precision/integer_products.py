"""Quantised products as one operator of ONNX Runtime, in its graph for CPUs."""

import numpy as np
import onnx_ir as ir

from calipso_export.forms.matching import (
    ORT_DOMAIN,
    add_constant,
    constant,
    made_by,
    nodes_of,
    only_consumer,
    replace_by,
    scalar,
    use_ort_domain,
)

# Of int8, moved into uint8: x86 multiplies unsigned activations by signed weights.
_MIDDLE = 128


def fuse_integer_products(graph: ir.Graph) -> int:
    """Replace each MatMul between two DequantizeLinear nodes, and the bias after it, by MatMulIntegerToFloat, in place.

    ONNX Runtime finds such a product by itself only where no other one reads its activation: the projections to
    queries, keys and values, and the two halves of a gated MLP, it would compute in fp32 and restore their weights
    at every call. Activations become uint8 around 128: the same steps, so the numbers are the same.

    Returns:
        How many products it found.
    """
    quantised: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
    count = 0
    for product in nodes_of(graph, "MatMul"):
        activation = made_by(product.inputs[0], "DequantizeLinear")
        weight = made_by(product.inputs[1], "DequantizeLinear")
        if activation is None or weight is None or constant(weight.inputs[0]) is None:
            continue
        signed = made_by(activation.inputs[0], "QuantizeLinear")
        if signed is None or scalar(activation.inputs[2]) != 0:
            continue
        key = str(activation.outputs[0].name)
        if key not in quantised:
            quantised[key] = _unsigned(graph, signed)
        values, step, middle = quantised[key]
        stored, scales, zeros = weight.inputs
        last = product.outputs[0]
        inputs = [values, stored, step, scales, middle, zeros]
        adding = only_consumer(last)
        bias = None if adding is None or adding.op_type != "Add" else _bias(adding, last, scales)
        if adding is not None and bias is not None:
            last = adding.outputs[0]
            inputs.append(bias)
        fused = ir.node("MatMulIntegerToFloat", inputs, domain=ORT_DOMAIN, name=product.name)
        replace_by(graph, last, [fused])
        use_ort_domain(graph)
        count += 1
    return count


def _unsigned(graph: ir.Graph, signed: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """What a QuantizeLinear to int8 reads, in uint8; with the scale and the zero point."""
    value, step, _ = signed.inputs
    if value is None or step is None:
        message = f"{signed.name} lacks an input"
        raise ValueError(message)
    middle = add_constant(graph, "zero_uint8_scalar", np.array(_MIDDLE, np.uint8))
    node = ir.node("QuantizeLinear", [value, step, middle], name=f"{signed.name}_unsigned")
    output = node.outputs[0]
    output.name, output.shape, output.dtype = f"{value.name}.unsigned", value.shape, ir.DataType.UINT8
    graph.insert_before(signed, node)
    return output, step, middle


def _bias(adding: ir.Node, product: ir.Value, scales: ir.Value | None) -> ir.Value | None:
    """What is added to each channel of a product: the operator takes it as an input."""
    other = next((value for value in adding.inputs if value is not product), None)
    array, width = constant(other), None if scales is None else scales.shape
    return other if array is not None and width is not None and array.shape == tuple(width) else None
