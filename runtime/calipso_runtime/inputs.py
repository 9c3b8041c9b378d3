"""Tells one picture from many, and checks every array before an engine sees it."""

import os
from collections.abc import Iterator, Sequence
from typing import TypeAlias, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from calipso_runtime import clouds, pictures, pixels, preprocess
from calipso_runtime.errors import InputError
from calipso_runtime.manifest import POINTS, Manifest, Preprocess
from calipso_runtime.pictures import Picture, Source

Float32: TypeAlias = npt.NDArray[np.float32]
UInt8: TypeAlias = npt.NDArray[np.uint8]
# One item: a picture, or float32 [3,H,W] that is preprocessed already.
Item: TypeAlias = Picture | Float32
# What `classify` and its like take: one item, a sequence of items, uint8 [N,H,W,C] or float32 [N,3,H,W].
Images: TypeAlias = Item | Sequence[Item]

# How far beyond the range of normalised pixels a value may lie, in units where white is 1. Rounding
# needs 1e-6; 8-bit pixels that were never divided by 255 are off by 254.
_RANGE_SLACK = 0.01
_PICTURE_DIMS = {np.dtype(np.uint8): (2, 3), np.dtype(np.float32): (3,)}
_BATCH_DIMS = 4
_EXPECTED = (
    "a path, bytes, an open file, a Pillow image, uint8 pixels [H,W,3] or [N,H,W,3], "
    "float32 [3,H,W] or [N,3,H,W] that is preprocessed already, or a list of pictures"
)


def split_for(images: Images, manifest: Manifest) -> tuple[Sequence[Item], bool]:
    """As `split`, of whatever a bundle classifies."""
    return clouds.split(images) if manifest.input_name == POINTS else split(images)


def tensor_for(item: Item, manifest: Manifest, *, name: str) -> Float32 | UInt8:
    """As `tensor`, of whatever a bundle classifies: of the manifest's `input_shape`, uint8 where it takes pixels."""
    if (given := manifest.pixels) is not None:
        _check_source(item, name)
        return pixels.array(item, given, manifest.preprocess, name=name)
    if manifest.input_name == POINTS:
        return clouds.tensor(item, int(manifest.input["points"]), name=name)
    return tensor(item, manifest.preprocess, name=name)


def split(images: Images) -> tuple[Sequence[Item], bool]:
    """The items, and whether the caller gave a single one.

    Raises:
        InputError: the batch is empty, or it is nothing that holds pictures.
    """
    items: Sequence[Item]
    if isinstance(images, np.ndarray):
        items, single = _split_array(images)
    elif _is_source(images):
        items, single = [images], True
    elif isinstance(images, Sequence):
        items, single = cast("Sequence[Item]", images), False
    else:
        hint = " Use classify_stream for a generator." if isinstance(images, Iterator) else ""
        message = f"images is a {_type_name(images)}: expected {_EXPECTED}.{hint}"
        raise InputError(message)
    if len(items) == 0:
        shape = f" of shape {list(images.shape)}" if isinstance(images, np.ndarray) else ""
        message = f"images is an empty {_type_name(images)}{shape}: expected at least one picture"
        raise InputError(message)
    return items, single


def tensor(item: Item, config: Preprocess, *, name: str) -> Float32:
    """One item as the graph takes it: float32 [3,H,W], normalised.

    Raises:
        ImageError: a picture cannot be decoded.
        InputError: an array has another dtype or shape, holds NaN, or leaves the range of pixels.
    """
    if isinstance(item, np.ndarray):
        _check_dtype(item, name)
        if item.dtype == np.float32:
            return _checked(cast("Float32", item), config, name)
    _check_source(item, name)
    return pictures.decode(cast("Picture", item), config, name=name)


def _check_source(item: object, name: str) -> None:
    if not isinstance(item, np.ndarray) and not _is_source(item):
        message = f"{name} is a {_type_name(item)}: expected {_EXPECTED}"
        raise InputError(message)


def _split_array(array: npt.NDArray[np.generic]) -> tuple[Sequence[Item], bool]:
    _check_dtype(array, "images")
    if array.ndim == _BATCH_DIMS:
        return cast("Sequence[Item]", list(array)), False
    if array.ndim not in _PICTURE_DIMS[array.dtype]:
        message = f"images is {array.dtype} {list(array.shape)}: expected {_EXPECTED}"
        raise InputError(message)
    return [cast("Item", array)], True


def _check_dtype(array: npt.NDArray[np.generic], name: str) -> None:
    if array.dtype in _PICTURE_DIMS:
        return
    advice = "pass pixels as uint8 [H,W,3]"
    if np.issubdtype(array.dtype, np.floating):
        advice = "convert it with .astype(numpy.float32) if it is preprocessed already, or pass pixels as uint8 [H,W,3]"
    message = f"{name} has dtype {array.dtype}: expected uint8 or float32; {advice}"
    raise InputError(message)


def _checked(array: Float32, config: Preprocess, name: str) -> Float32:
    expected = (3, *config.size)
    if array.shape != expected:
        message = (
            f"{name} is float32 {list(array.shape)}: this graph takes float32 {list(expected)}, preprocessed already. "
            "Pass pixels as uint8 [H,W,3] to have them resized"
        )
        raise InputError(message)
    finite = np.isfinite(array)
    if not finite.all():
        channel, row, column = np.argwhere(~finite)[0]
        message = (
            f"{name} holds {array[channel, row, column]} at channel {channel}, row {row}, column {column} "
            f"({int((~finite).sum())} such values): expected finite numbers"
        )
        raise InputError(message)
    _check_range(array, config, name)
    return array


def _check_range(array: Float32, config: Preprocess, name: str) -> None:
    lowest, highest = preprocess.bounds(config)
    slack = _RANGE_SLACK * (highest - lowest)
    outside = ((array < lowest - slack) | (array > highest + slack)).any(axis=(1, 2))
    if not outside.any():
        return
    channel = int(np.argmax(outside))
    low, high = float(array[channel].min()), float(array[channel].max())
    hint = "normalise it with the bundle's mean and std; clip to [0, 1] before that if a resize overshot"
    if low >= 0 and high > float(highest.max()) + 1:
        hint = "it looks like 0..255 pixels: pass uint8 [H,W,3]"
    message = (
        f"{name} has values from {low:.4g} to {high:.4g} in channel {channel}: normalised pixels lie between "
        f"{float(lowest[channel, 0, 0]):.4g} and {float(highest[channel, 0, 0]):.4g} there; {hint}"
    )
    raise InputError(message)


def _is_source(value: object) -> TypeGuard[Source]:
    """Whether it is something that Pillow opens, or has opened; told without importing Pillow."""
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview):
        return True
    return callable(getattr(value, "read", None)) or (hasattr(value, "getbands") and hasattr(value, "convert"))


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
