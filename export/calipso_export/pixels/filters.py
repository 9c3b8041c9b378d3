"""Pillow's resize as numbers: its filters' weights in fixed point, and which of its two passes comes first.

Source: python-pillow/Pillow, src/libImaging/Resample.c (`precompute_coeffs`, `normalize_coeffs_8bpc`): weights are
computed in double, normalised, and rounded to 22 bits behind the point; each pass sums, adds a half, shifts, and clips
to 0..255.
"""

import numpy as np
import numpy.typing as npt

from calipso_runtime.errors import UsageError
from calipso_runtime.pixel_input import PILLOW_12

# Bits behind the point of a weight: 32 less 8 of a level, less 2 for sums beyond 1.
PRECISION_BITS = 32 - 8 - 2
SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
# The coefficient of Keys' cubic that Pillow takes; OpenCV and PyTorch's interpolation take -0.75.
CUBIC_A = -0.5
# Before Pillow 13: only pictures that are so many times as high as they are wide.
TALL = 100


def weights(source: int, target: int, interpolation: str, *, crop: int | None = None) -> npt.NDArray[np.int64]:
    """The weights of one pass, int64 [target,source], in units of 2**-22; with a crop, of its rows alone.

    Args:
        source: pixels along the axis.
        target: pixels that they become.
        interpolation: "bicubic" or "bilinear".
        crop: how many of these a centred crop keeps, where they are more.
    """
    kept = target if crop is None else min(crop, target)
    start = round((target - kept) / 2.0)  # halves to even, as torchvision rounds
    scale = source / target
    filter_scale = max(scale, 1.0)
    support = SUPPORT[interpolation] * filter_scale
    matrix = np.zeros((kept, source), np.int64)
    for place in range(kept):
        centre = (start + place + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), source)
        at = (np.arange(first, last) - centre + 0.5) * (1.0 / filter_scale)
        values = _FILTERS[interpolation](np.abs(at))
        # One by one, as the sum there.
        total = 0.0
        for value in values.tolist():
            total += value
        if total != 0.0:
            values = values / total
        # C rounds towards zero.
        matrix[place, first:last] = np.trunc(values * (1 << PRECISION_BITS) + np.copysign(0.5, values))
    return matrix


def is_vertical_first(size: tuple[int, int], resized: tuple[int, int], passes: str) -> bool:
    """Whether Pillow resizes the columns before the rows; levels between the passes are rounded, so that it shows.

    The rule of Pillow 13 was found by asking it: it held for 5,000 drawn sizes. Before, Image.resize splits very tall
    pictures.
    """
    (height, width), (rows, columns) = size, resized
    if rows >= height:
        return False
    return height > TALL * width if passes == PILLOW_12 else height - rows > 2 * (width - columns)


def split(matrix: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], int]:
    """Weights as high and low parts, `high * 2**bits + low`: every product with levels is then exact in fp32.

    Both parts have at most 11 significant bits, so that TF32 and fp16 hold them too, and no sum leaves the 24 bits in
    which fp32 is exact, in whatever order an engine adds.

    Raises:
        UsageError: there is no such split: the pictures shrink to less than a two hundredth.
    """
    for bits in range(12, 6, -1):
        low = (matrix + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
        high = (matrix - low) >> bits
        sums = (np.abs(part).sum(axis=1).max() * _MAX_LEVEL for part in (high, low))
        if max(sums) < _EXACT and max(np.abs(high).max(), np.abs(low).max()) <= _SIGNIFICANT:
            return high.astype(np.float32), low.astype(np.float32), bits
    message = (
        f"{matrix.shape[1]} pixels a side are too many to become {len(matrix)} by products that are exact in fp32: "
        "give a smaller pixels_size"
    )
    raise UsageError(message)


_MAX_LEVEL, _EXACT, _SIGNIFICANT = 255, 1 << 24, 1 << 11


def _bicubic(at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near = ((CUBIC_A + 2.0) * at - (CUBIC_A + 3.0)) * at * at + 1
    far = (((at - 5) * at + 8) * at - 4) * CUBIC_A
    return np.where(at < 1.0, near, np.where(at < SUPPORT["bicubic"], far, 0.0))


def _bilinear(at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(at < 1.0, 1.0 - at, 0.0)


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}
