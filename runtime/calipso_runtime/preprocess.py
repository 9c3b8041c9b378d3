"""Picture -> the graph's input, level for level as open_clip's evaluation transform makes it.

open_clip resizes in the picture's own mode, crops or pads, and only then converts to RGB; it does
not look at the EXIF orientation. All of that is reproduced with the same Pillow calls, so that the
uint8 levels are equal by construction, and the arithmetic after them is ToTensor's and Normalize's
in float32. Source: open_clip/transform.py `image_transform`, torchvision/transforms/functional.py.

Pillow is imported by the first picture, not by this module.
"""

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calipso_runtime.manifest import Preprocess

if TYPE_CHECKING:
    from PIL import Image

# A picture is not enlarged beyond this many pixels (128 MiB in RGBA): only the window that the crop
# keeps is made. It takes an aspect ratio over 600 to get there at 224 px.
MAX_RESIZED_PIXELS = 1 << 25
_MAX_LEVEL = np.float32(255)
# Reach of Pillow's antialiased filters, in pixels of the smaller of source and target.
_BICUBIC_SUPPORT = 2
# Pixels beyond that reach which a window keeps, so that rounding never cuts a tap off.
_WINDOW_SLACK = 2
# Pillow resizes these by the nearest pixel whatever filter is asked for, and these premultiplied.
_NEAREST_MODES = ("1", "P")
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}


def resized_size(height: int, width: int, config: Preprocess) -> tuple[int, int]:
    """Height and width after the resize, before the crop, with torchvision's and timm's rounding."""
    target_height, target_width = config.size
    if config.resize_mode == "squash":
        return config.size
    if config.resize_mode == "shortest" and target_height == target_width:
        short, long = min(height, width), max(height, width)
        scaled = int(target_height * long / short)
        return (scaled, target_width) if width <= height else (target_height, scaled)
    ratios = (height / target_height, width / target_width)
    ratio = max(ratios) if config.resize_mode == "longest" else min(ratios)
    return round(height / ratio), round(width / ratio)


def resize_and_crop(image: "Image.Image", config: Preprocess) -> npt.NDArray[np.uint8]:
    """The picture at the graph's size, uint8 [H,W,3], equal to open_clip's before ToTensor.

    Args:
        image: of any mode and size; it is not changed.
        config: the bundle's preprocessing.

    Raises:
        ValueError: where Pillow, and so open_clip's transform, raises it: a picture so long that
            its short side rounds to nothing, or a mode that has no way to RGB.
    """
    size = resized_size(image.height, image.width, config)
    if size == (image.height, image.width):
        image = _crop_or_pad(image, config)
    elif size[0] * size[1] > max(MAX_RESIZED_PIXELS, image.height * image.width):
        image = _resize_window(image, size, config)
    else:
        image = _crop_or_pad(image.resize(size[::-1], _resample(config)), config)
    return np.asarray(_to_rgb(image))


def normalise(pixels: npt.NDArray[np.uint8], config: Preprocess) -> npt.NDArray[np.float32]:
    """Uint8 [H,W,3] -> float32 [3,H,W], bit for bit what ToTensor and Normalize give."""
    mean, std = _statistics(config)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    planes /= _MAX_LEVEL
    planes -= mean
    planes /= std
    return planes


def bounds(config: Preprocess) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Lowest and highest normalised value of each channel, float32 [3,1,1]."""
    mean, std = _statistics(config)
    return (np.float32(0) - mean) / std, (np.float32(1) - mean) / std


@functools.lru_cache(maxsize=8)
def _statistics(config: Preprocess) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    mean, std = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (config.mean, config.std))
    return mean, std


def resample_name(config: Preprocess) -> str:
    """The filter in use, "bicubic" or "bilinear"."""
    # open_clip gives its interpolation to every resize but this one, which keeps timm's default.
    keeps_default = config.resize_mode == "shortest" and config.size[0] != config.size[1]
    return "bicubic" if keeps_default else config.interpolation


def _resample(config: Preprocess) -> "Image.Resampling":
    from PIL import Image

    return Image.Resampling[resample_name(config).upper()]


def _centre(size: int, crop: int) -> int:
    """Where a centred crop starts. Python rounds halves to even, and so does torchvision."""
    return round((size - crop) / 2.0)


def _crop_or_pad(image: "Image.Image", config: Preprocess) -> "Image.Image":
    if config.resize_mode == "squash":
        return image
    height, width = config.size
    missing = (max(width - image.width, 0), max(height - image.height, 0))
    if any(missing):
        border = (missing[0] // 2, missing[1] // 2, (missing[0] + 1) // 2, (missing[1] + 1) // 2)
        image = _pad(image, border, config.fill_color if config.resize_mode == "longest" else 0)
    if (image.height, image.width) == (height, width):
        return image
    left, top = _centre(image.width, width), _centre(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _pad(image: "Image.Image", border: tuple[int, int, int, int], level: int) -> "Image.Image":
    """As torchvision pads: the level in every band, or the palette's entry of that index."""
    from PIL import ImageOps

    bands = len(image.getbands())
    padded = ImageOps.expand(image, border=border, fill=level if bands == 1 else (level,) * bands)
    if image.mode == "P" and (palette := image.getpalette()) is not None:
        padded.putpalette(palette)
    return padded


def _resize_window(image: "Image.Image", size: tuple[int, int], config: Preprocess) -> "Image.Image":
    """The centre crop of the resized picture, without the rest of that picture.

    Pillow enlarges along the rows first. It is told to here, one axis at a time: left to itself it
    would choose the order by the shape of the window (since Pillow 13, pull request 9549), and the
    levels between the two passes are rounded and clipped.

    The source is cut down first: Pillow keeps a box's corners in float32, which is precise near
    zero only. The filter's taps are then off by under 1e-5 px, and a level may differ by one where
    its exact value lies on the edge between two: see test_preprocess_window.py for how rarely.
    """
    from PIL import Image

    height, width = config.size
    x_scale, y_scale = image.width / size[1], image.height / size[0]
    left, top = _centre(size[1], width) * x_scale, _centre(size[0], height) * y_scale
    if image.mode in _NEAREST_MODES:
        matrix = (x_scale, 0.0, left, 0.0, y_scale, top)
        return image.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    x0, x1 = _reach(left, width, x_scale, image.width)
    y0, y1 = _reach(top, height, y_scale, image.height)
    window, mode = image.crop((x0, y0, x1, y1)), image.mode
    window = window.convert(_PREMULTIPLIED.get(mode, mode))
    row_box = (left - x0, 0, min(x1 - x0, left - x0 + width * x_scale), window.height)
    window = window.resize((width, window.height), _resample(config), box=row_box)
    column_box = (0, top - y0, width, min(y1 - y0, top - y0 + height * y_scale))
    return window.resize((width, height), _resample(config), box=column_box).convert(mode)


def _reach(start: float, crop: int, scale: float, limit: int) -> tuple[int, int]:
    """The source pixels, first and past the last, which the filter looks at for a crop."""
    margin = _BICUBIC_SUPPORT * max(scale, 1.0) + _WINDOW_SLACK
    return max(0, math.floor(start - margin)), min(limit, math.ceil(start + crop * scale + margin))


def _to_rgb(image: "Image.Image") -> "Image.Image":
    if isinstance(image.info.get("transparency"), bytes):
        # Pillow warns that RGB cannot hold such a palette's transparency. The colours are the same.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")
