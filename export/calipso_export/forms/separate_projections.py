"""Queries, keys and values from three convolutions instead of one that is split: no copy of each.

One product for all three is right where weights are read slowly and launches cost; a blocked
convolution reads its weights once anyway, and the Split behind it is a copy.
"""

import onnx_ir as ir

from calipso_export.forms.matching import (
    TO_ROWS,
    add_constant,
    constant,
    indices,
    is_permutation,
    made_by,
    nodes_of,
    replace_by,
    reshape,
    static_shape,
    transpose,
)


def separate_projections(graph: ir.Graph) -> int:
    """Replace an even Split of the channels of `Reshape(Transpose(Conv(x)))` by one convolution for each part."""
    return sum(_separate(graph, node) for node in nodes_of(graph, "Split"))


def _separate(graph: ir.Graph, split: ir.Node) -> bool:
    merged = made_by(split.inputs[0], "Reshape")
    last = None if merged is None else made_by(merged.inputs[0], "Transpose")
    conv = None if last is None else made_by(last.inputs[0], "Conv")
    shape = static_shape(split.inputs[0])
    if not is_permutation(last, *TO_ROWS):
        return False
    if conv is None or shape is None or len(split.inputs) > 1 or len(conv.inputs) < 3:  # noqa: PLR2004
        return False
    rank, parts, bias = len(shape), len(split.outputs), constant(conv.inputs[2])
    length, channels = shape[-2:]
    if split.attributes["axis"].as_int() not in (-1, rank - 1) or bias is None or length is None or channels is None:
        return False
    if list(conv.attributes["kernel_shape"].as_ints()) != [1, 1] or channels % parts:
        return False
    if made_by(conv.inputs[1], "DequantizeLinear") is not None:
        # One product of integers, which is not bound by its weights.
        return False
    width = channels // parts
    for index, output in enumerate(split.outputs):
        bounds = [indices(graph, index * width), indices(graph, (index + 1) * width), indices(graph, 0)]
        kernel = ir.node("Slice", [conv.inputs[1], *bounds])
        part = add_constant(graph, f"{split.outputs[index].name}.bias", bias[index * width : (index + 1) * width])
        own = ir.node("Conv", [conv.inputs[0], kernel.outputs[0], part], {"kernel_shape": [1, 1]})
        rows = transpose(own.outputs[0], *TO_ROWS)
        replace_by(graph, output, [kernel, own, rows, reshape(graph, rows.outputs[0], -1, length, width)])
    return True
