"""One product for each of queries, keys and values, in graphs whose products are in eight bits.

TensorRT for RTX 1.7 does not compute a joined product in eight bits where it has one scale per channel and is split
afterwards: it restores the weights at run time, in 16 or 32 bits. It does compute three products with the same weights
and scales. The answers are the same either way.
"""

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from calipso_export.forms.matching import (
    add_constant,
    constant,
    made_by,
    nodes_of,
    only_consumer,
    replace_by,
    static_shape,
)


def separate_products(graph: ir.Graph) -> int:
    """Replace each Split of the channels of `MatMul(x, constant)`, or of that and a bias, by products of its own.

    Returns:
        How many splits it replaced.
    """
    return sum(_separate(graph, split) for split in nodes_of(graph, "Split"))


def _separate(graph: ir.Graph, split: ir.Node) -> bool:
    adding = made_by(split.inputs[0], "Add")
    product, bias = (made_by(split.inputs[0], "MatMul"), None) if adding is None else _biased(adding)
    widths = _widths(split)
    if product is None or widths is None or only_consumer(product.outputs[0]) is None:
        return False
    weight, array, summand = product.inputs[1], constant(product.inputs[1]), constant(bias)
    if weight is None or array is None or array.shape[1:] != (sum(widths),) or only_consumer(weight) is None:
        return False
    if adding is not None and (summand is None or summand.shape != array.shape[1:]):
        return False
    for place, (output, end) in enumerate(zip(split.outputs, itertools.accumulate(widths), strict=True)):
        part = slice(end - widths[place], end)
        own = add_constant(graph, f"{weight.name}.{place}", array[:, part])
        nodes = [ir.node("MatMul", [product.inputs[0], own], name=f"{product.name}.{place}")]
        nodes[0].outputs[0].shape, nodes[0].outputs[0].type = output.shape, output.type
        if adding is not None and bias is not None and summand is not None:
            added = add_constant(graph, f"{bias.name}.{place}", summand[part])
            nodes.append(ir.node("Add", [nodes[0].outputs[0], added], name=f"{adding.name}.{place}"))
        replace_by(graph, output, nodes)
    return True


def _biased(adding: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The product that an Add reads and nothing else does, and what it adds."""
    if only_consumer(adding.outputs[0]) is None:
        return None, None
    first, second = adding.inputs
    product = made_by(first, "MatMul")
    return (product, second) if product is not None else (made_by(second, "MatMul"), first)


def _widths(split: ir.Node) -> Sequence[int] | None:
    """How many channels each part has, or None where it does not split the last axis, or into unknown sizes."""
    shapes = [static_shape(output) for output in split.outputs]
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    widths = [shape[-1] for shape in shapes if shape is not None and axis in (-1, len(shape) - 1)]
    known = [width for width in widths if width is not None]
    return known if len(known) == len(shapes) else None
