"""The resize of pictures of any size: by the Resize operator on uint8, which ONNX Runtime computes as Pillow does.

Its kernel for uint8 with antialiasing works in 22 bits of fixed point, and rounds levels between the two passes. What
is left is that its weights are computed in float32: one level, in about one value of ten thousand. Pictures that grow
are resized exactly: see `enlarge`. The sizes are computed in the graph, with the rounding of torchvision and timm.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from calipso_export.pixels import enlarge
from calipso_export.pixels.filters import CUBIC_A, TALL
from calipso_export.pixels.nodes import COLUMNS, ROWS, Nodes
from calipso_runtime.manifest import Preprocess
from calipso_runtime.pixel_input import CHANNEL_ORDERS, PILLOW_12, PixelInput
from calipso_runtime.preprocess import resample_name

_MODES = {"bicubic": "cubic", "bilinear": "linear"}
_CHANNELS = 3
_LIKE_PILLOW: dict[str, Any] = {
    "antialias": 1,
    "cubic_coeff_a": CUBIC_A,
    "exclude_outside": 1,
    "coordinate_transformation_mode": "half_pixel",
}


def levels(nodes: Nodes, pixels: ir.Value, given: PixelInput, config: Preprocess) -> ir.Value:
    """Uint8 [B,H,W,C] -> float32 [B,3,h,w], whole levels, of the graph's size."""
    shape = nodes.op("Shape", pixels)
    batch, *size = (nodes.op("Gather", shape, nodes.numbers(axis), axis=0) for axis in range(3))
    resized = _resized(nodes, size[0], size[1], config)
    planes = nodes.op("Transpose", pixels, perm=[0, 3, 1, 2])
    if given.channels != "rgb":
        planes = nodes.op("Gather", planes, nodes.numbers(*CHANNEL_ORDERS[given.channels]), axis=1)
    kept = [_kept(nodes, target, crop, config) for target, crop in zip(resized, config.size, strict=True)]
    interpolation = resample_name(config)
    is_vertical = _is_vertical_first(nodes, (size[0], size[1]), resized, given.passes)

    def enlarged(own: Nodes) -> ir.Value:
        axes = {
            axis: enlarge.Axis(source, target, start, count)
            for axis, source, target, (start, count) in zip((ROWS, COLUMNS), size, resized, kept, strict=True)
        }
        return enlarge.levels(own, planes, axes, is_vertical, interpolation)

    def shrunk(own: Nodes) -> ir.Value:
        # The operator takes rows of pixels first. Where Pillow does not, the first of two has the columns alone to
        # do; else the second has nothing to do, and costs a copy of the result.
        value = planes
        for columns in (own.op("Where", is_vertical, size[1], resized[1]), resized[1]):
            sizes = own.op("Concat", batch, own.numbers(_CHANNELS), resized[0], columns, axis=0)
            value = own.op("Resize", value, None, None, sizes, mode=_MODES[interpolation], **_LIKE_PILLOW)
        first, counts = (own.op("Concat", *each, axis=0) for each in zip(*kept, strict=True))
        value = own.op("Slice", value, first, own.op("Add", first, counts), own.numbers(ROWS, COLUMNS))
        return own.op("Cast", value, to=ir.DataType.FLOAT.value)

    grows = [nodes.op("Less", before, after) for before, after in zip(size, resized, strict=True)]
    planes = nodes.choice(nodes.op("Or", *grows), enlarged, shrunk)
    if config.resize_mode == "longest":
        planes = _padded(nodes, planes, resized, config)
    return nodes.op("Reshape", planes, nodes.numbers(-1, _CHANNELS, *config.size))


def _kept(nodes: Nodes, resized: ir.Value, crop: int, config: Preprocess) -> tuple[ir.Value, ir.Value]:
    """Where the crop starts in the resized picture, and how much of it that is."""
    if config.resize_mode != "shortest":
        return nodes.numbers(0), resized
    two = nodes.numbers(2)
    # Half of what is too much, halves rounded to even.
    extra = nodes.op("Sub", resized, nodes.numbers(crop))
    half = nodes.op("Div", extra, two)
    odd = nodes.op("Mul", nodes.op("Mod", extra, two), nodes.op("Mod", half, two))
    return nodes.op("Add", half, odd), nodes.numbers(crop)


def _resized(nodes: Nodes, height: ir.Value, width: ir.Value, config: Preprocess) -> tuple[ir.Value, ir.Value]:
    """As `calipso_runtime.preprocess.resized_size`, each int64 [1]."""
    target_height, target_width = config.size
    if config.resize_mode == "squash":
        return nodes.numbers(target_height), nodes.numbers(target_width)
    if config.resize_mode == "shortest" and target_height == target_width:
        target = nodes.numbers(target_height)
        short, long = nodes.op("Min", height, width), nodes.op("Max", height, width)
        # Integers: `int(target * long / short)` rounds no quotient up to a whole number.
        scaled = nodes.op("Div", nodes.op("Mul", target, long), short)
        is_high = nodes.op("LessOrEqual", width, height)
        return nodes.op("Where", is_high, scaled, target), nodes.op("Where", is_high, target, scaled)
    sizes = [nodes.op("Cast", size, to=ir.DataType.DOUBLE.value) for size in (height, width)]
    ratios = [
        nodes.op("Div", size, nodes.constant(np.array([target], np.float64)))
        for size, target in zip(sizes, config.size, strict=True)
    ]
    ratio = nodes.op("Max" if config.resize_mode == "longest" else "Min", *ratios)
    rows, columns = (
        nodes.op("Cast", nodes.op("Round", nodes.op("Div", size, ratio)), to=ir.DataType.INT64.value) for size in sizes
    )
    return rows, columns


def _is_vertical_first(
    nodes: Nodes, size: tuple[ir.Value, ir.Value], resized: tuple[ir.Value, ir.Value], passes: str
) -> ir.Value:
    """As `filters.is_vertical_first`."""
    (height, width), (rows, columns) = size, resized
    shrinks = nodes.op("Greater", height, rows)
    if passes == PILLOW_12:
        return nodes.op("And", shrinks, nodes.op("Greater", height, nodes.op("Mul", width, nodes.numbers(TALL))))
    less, narrower = nodes.op("Sub", height, rows), nodes.op("Sub", width, columns)
    return nodes.op("And", shrinks, nodes.op("Greater", less, nodes.op("Mul", narrower, nodes.numbers(2))))


def _padded(nodes: Nodes, planes: ir.Value, resized: Sequence[ir.Value], config: Preprocess) -> ir.Value:
    missing = nodes.op("Sub", nodes.numbers(*config.size), nodes.op("Concat", *resized, axis=0))
    before = nodes.op("Div", missing, nodes.numbers(2))
    outer = nodes.numbers(0, 0)
    pads = nodes.op("Concat", outer, before, outer, nodes.op("Sub", missing, before), axis=0)
    fill = nodes.constant(np.array(config.fill_color, np.float32))
    return nodes.op("Pad", planes, pads, fill, mode="constant")
