"""The resize of pictures of one size, as products with constant matrices: Pillow's own arithmetic, on any engine.

A pass of Pillow is `clip((sum w x + 2**21) >> 22)` in integers. Here the weights are two matrices of small integers,
high and low, whose products with levels are exact in fp32 (see `filters.split`), and

    (high x * 2**b + low x + 2**21) >> 22  =  floor((high x + floor(low x / 2**b) + 2**(21-b)) / 2**(22-b))

so that the levels are Pillow's own, bit for bit. Only the rows and columns that the crop keeps are computed, from those
of the source that they look at: where a picture shrinks much, those are few to each, and several smaller products of
slices take the place of a matrix that is mostly zeros.
"""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.pixels.filters import PRECISION_BITS, is_vertical_first, split, weights
from calipso_export.pixels.nodes import COLUMNS, ROWS, Nodes, fixed_point
from calipso_runtime.errors import UsageError
from calipso_runtime.manifest import Preprocess
from calipso_runtime.pixel_input import CHANNEL_ORDERS, PixelInput
from calipso_runtime.preprocess import resample_name, resized_size

# Up to so many products to a pass; what a slice costs, in multiplications for each of its values. Measured on a CPU.
_MOST_BLOCKS, _SLICE_COST = 16, 16

Weights = npt.NDArray[np.int64]


class _Block(NamedTuple):
    """Neighbouring places of a pass, and what of the source they look at."""

    places: slice
    source: slice

    @property
    def cost(self) -> int:
        """Multiplications for a row of the source, of both parts of the weights."""
        source, places = (each.stop - each.start for each in (self.source, self.places))
        return int(source * (2 * places + _SLICE_COST))


def levels(nodes: Nodes, pixels: ir.Value, given: PixelInput, config: Preprocess, *, casts_first: bool) -> ir.Value:
    """Uint8 [B,H,W,C] -> float32 [B,3,h,w], whole levels, of the graph's size.

    Raises:
        UsageError: nothing is left of pictures of this size, as Pillow too refuses to resize them.
    """
    if given.size is None:
        message = "products with constant matrices resize pictures of one size"
        raise ValueError(message)
    resized = resized_size(*given.size, config)
    if 0 in resized:
        height, width = given.size
        message = (
            f"pictures of {height}x{width} (--pixels-size) are so long that their short side is nothing after the "
            f"model's resize ({config.resize_mode}, to {config.size[0]}x{config.size[1]})"
        )
        raise UsageError(message)
    axes = [COLUMNS, ROWS]
    if is_vertical_first(given.size, resized, given.passes):
        axes.reverse()
    matrices = {
        axis: weights(source, target, resample_name(config), crop=size)
        for axis, source, target, size in zip((ROWS, COLUMNS), given.size, resized, config.size, strict=True)
    }
    # Neither pass mixes what the other one drops.
    used = {axis: _used(matrix) for axis, matrix in matrices.items()}
    planes = _planes(nodes, pixels, used, given, casts_first=casts_first)
    for axis in axes:
        if not _is_identity(matrix := matrices[axis][:, used[axis]]):
            planes = _one_pass(nodes, planes, matrix, axis)
    return _padded(nodes, planes, resized, config)


def _planes(
    nodes: Nodes, pixels: ir.Value, used: dict[int, slice], given: PixelInput, *, casts_first: bool
) -> ir.Value:
    """The part of a picture that is looked at, float32 [B,3,H,W]."""
    if casts_first:
        pixels = nodes.op("Cast", pixels, to=ir.DataType.FLOAT.value)
    for axis, kept in used.items():
        if kept.stop - kept.start < given.shape[axis - ROWS]:
            pixels = nodes.slice(pixels, axis - 1, kept.start, kept.stop)
    planes = nodes.op("Transpose", pixels, perm=[0, 3, 1, 2])
    if given.channels != "rgb":
        planes = nodes.op("Gather", planes, nodes.numbers(*CHANNEL_ORDERS[given.channels]), axis=1)
    return planes if casts_first else nodes.op("Cast", planes, to=ir.DataType.FLOAT.value)


def _used(matrix: Weights) -> slice:
    used = np.flatnonzero(matrix.any(axis=0))
    return slice(int(used[0]), int(used[-1]) + 1)


def _is_identity(matrix: Weights) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix)) * (1 << PRECISION_BITS))


def _one_pass(nodes: Nodes, planes: ir.Value, matrix: Weights, axis: int) -> ir.Value:
    high, low, bits = split(matrix)
    blocks = _blocks(matrix)
    if len(blocks) == 1:
        # One product of both parts reads the planes once.
        sums = _product(nodes, planes, np.concatenate([high, low]), axis)
        above, below = (nodes.slice(sums, axis, start, start + len(matrix)) for start in (0, len(matrix)))
        return fixed_point(nodes, above, below, bits)
    slices = [nodes.slice(planes, axis, block.source.start, block.source.stop) for block in blocks]
    above, below = (
        nodes.op(
            "Concat",
            *(
                _product(nodes, piece, part[block.places, block.source], axis)
                for piece, block in zip(slices, blocks, strict=True)
            ),
            axis=axis,
        )
        for part in (high, low)
    )
    return fixed_point(nodes, above, below, bits)


def _product(nodes: Nodes, planes: ir.Value, matrix: npt.NDArray[np.float32], axis: int) -> ir.Value:
    if axis == ROWS:
        return nodes.op("MatMul", nodes.constant(matrix), planes)
    return nodes.op("MatMul", planes, nodes.constant(matrix.T))


def _blocks(matrix: Weights) -> list[_Block]:
    """The places of a pass in as many parts as cost least."""

    def cut(count: int) -> list[_Block]:
        ends = np.linspace(0, len(matrix), count + 1).round().astype(int).tolist()
        places = [slice(first, last) for first, last in itertools.pairwise(ends) if first < last]
        return [_Block(each, _used(matrix[each])) for each in places]

    def cost(blocks: list[_Block]) -> int:
        # All of the source, once, costs no slice.
        return 2 * matrix.size if len(blocks) == 1 else sum(block.cost for block in blocks)

    return min(map(cut, range(1, _MOST_BLOCKS + 1)), key=cost)


def _padded(nodes: Nodes, planes: ir.Value, resized: tuple[int, int], config: Preprocess) -> ir.Value:
    missing = [max(size - now, 0) for size, now in zip(config.size, resized, strict=True)]
    if not any(missing):
        return planes
    pads = [0, 0, *(each // 2 for each in missing), 0, 0, *((each + 1) // 2 for each in missing)]
    level = np.array(config.fill_color if config.resize_mode == "longest" else 0, np.float32)
    return nodes.op("Pad", planes, nodes.constant(np.array(pads)), nodes.constant(level), mode="constant")
