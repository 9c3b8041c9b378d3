"""One product for each of queries, keys and values, in graphs whose products are in eight bits.

TensorRT for RTX 1.7 does not compute a joined product in eight bits where it has one scale per channel and is split
afterwards: it restores the weights at run time, in 16 or 32 bits. It does compute three products with the same weights
and scales. The answers are the same either way.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.forms.matching import (
    add_constant,
    constant,
    is_permutation,
    made_by,
    nodes_of,
    only_consumer,
    replace_by,
    reshape,
    static_shape,
    transpose,
)

# [B,L,parts,H,E] to [parts,B,H,L,E], as timm turns queries, keys and values; and what is left of it for each.
_PARTS_FIRST, _HEADS_FIRST = (2, 0, 3, 1, 4), (0, 2, 1, 3)


def separate_products(graph: ir.Graph) -> int:
    """Replace products with a constant, or that and a bias, whose channels are split, by one product for each part.

    They are split by a Split of the last axis, or by a Reshape, a Transpose and Slices of the first axis.

    Returns:
        How many products it replaced.
    """
    split = sum(_separate_split(graph, node) for node in nodes_of(graph, "Split"))
    return split + sum(_separate_turned(graph, node) for node in nodes_of(graph, "Transpose"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Joined:
    """A product of several parts, and the bias that is added to it, if one is."""

    product: ir.Node
    weight: ir.Value
    array: npt.NDArray[np.generic]
    adding: ir.Node | None
    bias: ir.Value | None
    summand: npt.NDArray[np.generic] | None

    def part(self, graph: ir.Graph, place: int, channels: slice, like: ir.Value) -> list[ir.Node]:
        """Nodes that compute some of its channels, of the type of a value."""
        shape = list(self.product.outputs[0].shape or ())
        own = add_constant(graph, f"{self.weight.name}.{place}", self.array[:, channels])
        nodes = [ir.node("MatMul", [self.product.inputs[0], own], name=f"{self.product.name}.{place}")]
        if self.adding is not None and self.bias is not None and self.summand is not None:
            added = add_constant(graph, f"{self.bias.name}.{place}", self.summand[channels])
            nodes.append(ir.node("Add", [nodes[0].outputs[0], added], name=f"{self.adding.name}.{place}"))
        for each in nodes:
            each.outputs[0].shape = ir.Shape([*shape[:-1], channels.stop - channels.start])
            each.outputs[0].type = like.type
        return nodes


def _separate_split(graph: ir.Graph, split: ir.Node) -> bool:
    widths = _widths(split)
    joined = None if widths is None else _joined(split.inputs[0], sum(widths))
    if joined is None or widths is None:
        return False
    for place, (output, end) in enumerate(zip(split.outputs, itertools.accumulate(widths), strict=True)):
        replace_by(graph, output, joined.part(graph, place, slice(end - widths[place], end), output))
    return True


def _separate_turned(graph: ir.Graph, turning: ir.Node) -> bool:
    """The parts one after another, each turned by itself."""
    splitting = made_by(turning.inputs[0], "Reshape") if is_permutation(turning, *_PARTS_FIRST) else None
    if splitting is None or only_consumer(splitting.outputs[0]) is None:
        return False
    sizes = static_shape(splitting.outputs[0])
    parts = _parts(turning)
    if sizes is None or parts is None:
        return False
    _, length, count, heads, size = sizes
    if length is None or count is None or heads is None or size is None:
        return False
    width = heads * size
    joined = _joined(splitting.inputs[0], count * width)
    if joined is None:
        return False
    for place, output in parts.items():
        nodes = joined.part(graph, place, slice(place * width, (place + 1) * width), output)
        heads_apart = reshape(graph, nodes[-1].outputs[0], -1, length, heads, size)
        turned = transpose(heads_apart.outputs[0], *_HEADS_FIRST)
        heads_apart.name, turned.name = f"{splitting.name}.{place}", f"{turning.name}.{place}"
        heads_apart.outputs[0].type = output.type
        batch = output.shape[0] if output.shape is not None else None
        heads_apart.outputs[0].shape = ir.Shape([batch, length, heads, size])
        replace_by(graph, output, [*nodes, heads_apart, turned])
    return True


def _parts(turning: ir.Node) -> dict[int, ir.Value] | None:
    """By its place on the first axis, each part that is cut out; None where something else reads them all."""
    found = {}
    for cutting in turning.outputs[0].consumers():
        dropping = only_consumer(cutting.outputs[0])
        numbers = [constant(each) for each in cutting.inputs[1:]]
        if cutting.op_type != "Slice" or dropping is None or dropping.op_type != "Squeeze":
            return None
        if any(each is None or each.size != 1 for each in numbers):
            return None
        start, end, axis, step = (*(int(each.item()) for each in numbers if each is not None), 1)[:4]
        axes = constant(dropping.inputs[1]) if len(dropping.inputs) > 1 else None
        if (end - start, axis, step) != (1, 0, 1) or start < 0 or axes is None or axes.tolist() != [0]:
            return None
        found[start] = dropping.outputs[0]
    return found or None


def _joined(source: ir.Value | None, width: int) -> _Joined | None:
    """The product of so many channels that makes a value, which nothing else reads."""
    adding = made_by(source, "Add")
    product, bias = (made_by(source, "MatMul"), None) if adding is None else _biased(adding)
    if product is None or only_consumer(product.outputs[0]) is None:
        return None
    if adding is not None and only_consumer(adding.outputs[0]) is None:
        return None
    weight, array, summand = product.inputs[1], constant(product.inputs[1]), constant(bias)
    if weight is None or array is None or array.shape[1:] != (width,) or only_consumer(weight) is None:
        return None
    if adding is not None and (summand is None or summand.shape != array.shape[1:]):
        return None
    return _Joined(product=product, weight=weight, array=array, adding=adding, bias=bias, summand=summand)


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
