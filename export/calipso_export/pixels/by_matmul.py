"""The resize of pictures of one size, as products with constant matrices: Pillow's own arithmetic, on any engine.

A pass of Pillow is `clip((sum w x + 2**21) >> 22)` in integers. Here the weights are two matrices of small integers,
high and low, whose products with levels are exact in fp32 (see `filters.split`), and

    (high x * 2**b + low x + 2**21) >> 22  =  floor((high x + floor(low x / 2**b) + 2**(21-b)) / 2**(22-b))

so that the levels are Pillow's own, bit for bit. Only the rows and columns that the crop keeps are computed, from those
of the source that they look at.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.pixels.filters import PRECISION_BITS, is_vertical_first, split, weights
from calipso_export.pixels.nodes import COLUMNS, ROWS, Nodes, fixed_point
from calipso_runtime.bundle import Preprocess
from calipso_runtime.pixel_input import CHANNEL_ORDERS, PixelInput
from calipso_runtime.preprocess import resample_name, resized_size


def levels(nodes: Nodes, pixels: ir.Value, given: PixelInput, config: Preprocess) -> ir.Value:
    """Uint8 [B,H,W,C] -> float32 [B,3,h,w], whole levels, of the graph's size."""
    if given.size is None:
        message = "products with constant matrices resize pictures of one size"
        raise ValueError(message)
    resized = resized_size(*given.size, config)
    # TensorRT does nothing with uint8 but to cast it.
    wide = nodes.op("Cast", pixels, to=ir.DataType.FLOAT.value)
    planes = nodes.op("Transpose", wide, perm=[0, 3, 1, 2])
    if given.channels != "rgb":
        planes = nodes.op("Gather", planes, nodes.numbers(*CHANNEL_ORDERS[given.channels]), axis=1)
    axes = [COLUMNS, ROWS]
    if is_vertical_first(given.size, resized, given.passes):
        axes.reverse()
    matrices = {}
    for axis, source, target, size in zip((ROWS, COLUMNS), given.size, resized, config.size, strict=True):
        matrix = weights(source, target, resample_name(config), crop=size)
        # Neither pass mixes what the other one drops.
        used = np.flatnonzero(matrix.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        if last - first < source:
            planes = nodes.slice(planes, axis, first, last)
        matrices[axis] = matrix[:, first:last]
    for axis in axes:
        if not _is_identity(matrices[axis]):
            planes = _one_pass(nodes, planes, matrices[axis], axis)
    return _padded(nodes, planes, resized, config)


def _is_identity(matrix: npt.NDArray[np.int64]) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix)) * (1 << PRECISION_BITS))


def _one_pass(nodes: Nodes, planes: ir.Value, matrix: npt.NDArray[np.int64], axis: int) -> ir.Value:
    high, low, bits = split(matrix)
    both = np.concatenate([high, low])
    if axis == ROWS:
        sums = nodes.op("MatMul", nodes.constant(both), planes)
    else:
        sums = nodes.op("MatMul", planes, nodes.constant(both.T))
    rows = len(matrix)
    above, below = (nodes.slice(sums, axis, start, start + rows) for start in (0, rows))
    return fixed_point(nodes, above, below, bits)


def _padded(nodes: Nodes, planes: ir.Value, resized: tuple[int, int], config: Preprocess) -> ir.Value:
    missing = [max(size - now, 0) for size, now in zip(config.size, resized, strict=True)]
    if not any(missing):
        return planes
    pads = [0, 0, *(each // 2 for each in missing), 0, 0, *((each + 1) // 2 for each in missing)]
    level = np.array(config.fill_color if config.resize_mode == "longest" else 0, np.float32)
    return nodes.op("Pad", planes, nodes.constant(np.array(pads)), nodes.constant(level), mode="constant")
