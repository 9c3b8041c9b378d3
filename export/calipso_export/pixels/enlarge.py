"""Enlarges pictures of any size exactly as Pillow does, in the graph: weights in double, products in fp32.

ONNX Runtime's Resize computes its weights in float32, and is a level off Pillow in one value of some thousands between
the passes. A picture that shrinks stays within one level; one that grows may be off by two, and its resized form may be
a million pixels wide, of which the crop keeps a few. So pictures that grow, along one axis or both, go through matrices
that are computed here for the crop alone, as `filters.weights` computes them; the sums are exact as in `by_matmul`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from calipso_export.pixels.filters import CUBIC_A, PRECISION_BITS, SUPPORT
from calipso_export.pixels.nodes import COLUMNS, ROWS, Nodes, fixed_point

# Where weights are split into high and low parts: sums of 500 taps stay exact, those of an axis that shrinks by 125.
_BITS = 7


class Axis(NamedTuple):
    """Sizes along an axis, each int64 [1].

    Attributes:
        source: of the picture.
        target: that it is resized to.
        start: where the crop starts in that.
        kept: how much of it the crop keeps.
    """

    source: ir.Value
    target: ir.Value
    start: ir.Value
    kept: ir.Value


def levels(
    nodes: Nodes, planes: ir.Value, axes: Mapping[int, Axis], is_vertical_first: ir.Value, interpolation: str
) -> ir.Value:
    """Uint8 [B,3,H,W] -> float32 [B,3,h,w], whole levels.

    Args:
        nodes: get the nodes.
        planes: the pictures.
        axes: by axis, `ROWS` and `COLUMNS`.
        is_vertical_first: whether the height is resized before the width, bool [1].
        interpolation: "bicubic" or "bilinear".
    """
    matrices = {}
    for axis, sizes in axes.items():
        matrix, first, last = _weights(nodes, sizes, interpolation)
        planes = nodes.op("Slice", planes, first, last, nodes.numbers(axis))
        matrices[axis] = matrix
    planes = nodes.op("Cast", planes, to=ir.DataType.FLOAT.value)

    def passes(*order: int) -> Callable[[Nodes], ir.Value]:
        def both(own: Nodes) -> ir.Value:
            value = planes
            for axis in order:
                value = _one_pass(own, value, matrices[axis], axis)
            return value

        return both

    return nodes.choice(is_vertical_first, passes(ROWS, COLUMNS), passes(COLUMNS, ROWS))


def _weights(nodes: Nodes, sizes: Axis, interpolation: str) -> tuple[ir.Value, ir.Value, ir.Value]:
    """In units of 2**-22, double [count,used]; the first of the source's pixels used, and the one after the last."""

    def double(value: ir.Value) -> ir.Value:
        return nodes.op("Cast", value, to=ir.DataType.DOUBLE.value)

    def counted(first: ir.Value, last: ir.Value) -> ir.Value:
        scalar = nodes.constant(np.zeros(0, np.int64))
        ends = [nodes.op("Reshape", each, scalar) for each in (first, last)]
        return double(nodes.op("Range", *ends, nodes.constant(np.array(1))))

    half, scale = nodes.double(0.5), nodes.op("Div", double(sizes.source), double(sizes.target))
    places = nodes.op("Unsqueeze", counted(sizes.start, nodes.op("Add", sizes.start, sizes.kept)), nodes.numbers(1))
    centres = nodes.op("Mul", nodes.op("Add", places, half), scale)
    filter_scale = nodes.op("Max", scale, nodes.double(1.0))
    reach = nodes.op("Mul", nodes.double(SUPPORT[interpolation]), filter_scale)
    lowest = nodes.op("Floor", nodes.op("Add", nodes.op("Sub", centres, reach), half))
    beyond = nodes.op("Floor", nodes.op("Add", nodes.op("Add", centres, reach), half))
    lowest = nodes.op("Max", lowest, nodes.double(0.0))
    beyond = nodes.op("Min", beyond, double(sizes.source))
    first = nodes.op("Cast", nodes.op("ReduceMin", lowest, keepdims=0), to=ir.DataType.INT64.value)
    last = nodes.op("Cast", nodes.op("ReduceMax", beyond, keepdims=0), to=ir.DataType.INT64.value)
    first, last = (nodes.op("Reshape", each, nodes.numbers(1)) for each in (first, last))
    # A row has a few weights that are not 0: these are computed, and put into their places.
    taps = nodes.op(
        "Cast", nodes.op("ReduceMax", nodes.op("Sub", beyond, lowest), keepdims=0), to=ir.DataType.INT64.value
    )
    pixels = nodes.op("Add", lowest, nodes.op("Unsqueeze", counted(nodes.numbers(0), taps), nodes.numbers(0)))
    away = nodes.op("Abs", nodes.op("Add", nodes.op("Sub", pixels, centres), half))
    away = nodes.op("Mul", away, nodes.op("Div", nodes.double(1.0), filter_scale))
    values = nodes.op(
        "Where", nodes.op("Less", pixels, beyond), _FILTERS[interpolation](nodes, away), nodes.double(0.0)
    )
    values = nodes.op("Div", values, nodes.op("ReduceSum", values, nodes.numbers(1), keepdims=1))
    size = nodes.op(
        "Floor", nodes.op("Add", nodes.op("Mul", nodes.op("Abs", values), nodes.double(2.0**PRECISION_BITS)), half)
    )
    values = nodes.op("Mul", nodes.op("Sign", values), size)
    used = nodes.op("Sub", last, first)
    places = nodes.op("Sub", nodes.op("Cast", pixels, to=ir.DataType.INT64.value), first)
    # What a row does not use is 0, wherever it is added.
    places = nodes.op("Min", places, nodes.op("Sub", used, nodes.numbers(1)))
    empty = nodes.op("Expand", nodes.double(0.0), nodes.op("Concat", sizes.kept, used, axis=0))
    return nodes.op("ScatterElements", empty, places, values, axis=1, reduction="add"), first, last


def _bicubic(nodes: Nodes, at: ir.Value) -> ir.Value:
    def times(first: ir.Value, second: ir.Value) -> ir.Value:
        return nodes.op("Mul", first, second)

    def less(value: ir.Value, by: float) -> ir.Value:
        return nodes.op("Sub", value, nodes.double(by))

    near = less(times(nodes.double(CUBIC_A + 2.0), at), CUBIC_A + 3.0)
    near = less(times(times(near, at), at), -1.0)
    far = less(times(less(times(less(at, 5.0), at), -8.0), at), 4.0)
    far = times(far, nodes.double(CUBIC_A))
    far = nodes.op("Where", nodes.op("Less", at, nodes.double(SUPPORT["bicubic"])), far, nodes.double(0.0))
    return nodes.op("Where", nodes.op("Less", at, nodes.double(1.0)), near, far)


def _bilinear(nodes: Nodes, at: ir.Value) -> ir.Value:
    return nodes.op("Max", nodes.op("Sub", nodes.double(1.0), at), nodes.double(0.0))


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}


def _one_pass(nodes: Nodes, planes: ir.Value, matrix: ir.Value, axis: int) -> ir.Value:
    high = nodes.op("Floor", nodes.op("Mul", matrix, nodes.double(2.0**-_BITS)))
    low = nodes.op("Sub", matrix, nodes.op("Mul", high, nodes.double(2.0**_BITS)))
    sums = []
    for part in (high, low):
        factor = nodes.op("Cast", part, to=ir.DataType.FLOAT.value)
        if axis == ROWS:
            sums.append(nodes.op("MatMul", factor, planes))
        else:
            sums.append(nodes.op("MatMul", planes, nodes.op("Transpose", factor, perm=[1, 0])))
    return fixed_point(nodes, sums[0], sums[1], _BITS)
