"""Pictures as a graph of raw pixels takes them: uint8 [H,W,C], as decoded, and resized by the graph itself.

`manifest.pixels` says what a bundle's graph takes; `array` makes it of a picture. Pictures of modes that open_clip's
transform resizes before they are RGB (palettes, transparency, 16 bits, CMYK ...) go another way, so that the same
picture gets the same answer: Pillow resizes them here, to the size at which the graph has nothing left to do.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from calipso_runtime import pictures
from calipso_runtime.errors import ImageError, InputError
from calipso_runtime.manifest import Preprocess
from calipso_runtime.pixel_input import CHANNEL_ORDERS, PixelInput
from calipso_runtime.preprocess import resize_and_crop, resized_size

if TYPE_CHECKING:
    from PIL import Image

    from calipso_runtime.pictures import Source

UInt8: TypeAlias = npt.NDArray[np.uint8]

_OPAQUE = 255
_RGB, _RGBA = 3, 4
# In these modes resizing first and converting to RGB first are the same; in the others with alpha where it is opaque.
_PLAIN_MODES, _ALPHA_MODES = ("RGB", "L"), ("RGBA", "LA")


@dataclasses.dataclass(frozen=True)
class Ragged:
    """A batch of pictures of several sizes, as batches of one size each.

    Attributes:
        parts: arrays [n,H,W,C], each with the places of its pictures in the whole batch.
    """

    parts: tuple[tuple[list[int], UInt8], ...]

    @classmethod
    def of(cls, arrays: Sequence[UInt8]) -> "Ragged":
        """Group pictures by their sizes."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, array in enumerate(arrays):
            places.setdefault(array.shape, []).append(place)
        return cls(tuple((some, np.stack([arrays[place] for place in some])) for some in places.values()))

    def in_order(
        self, answers: Sequence[Mapping[str, npt.NDArray[np.floating]]]
    ) -> dict[str, npt.NDArray[np.floating]]:
        """The answers to the parts, as those to the whole batch."""
        order = np.argsort(np.concatenate([places for places, _ in self.parts]))
        return {name: np.concatenate([each[name] for each in answers])[order] for name in answers[0]}


def array(picture: object, given: PixelInput, config: Preprocess, *, name: str) -> UInt8:
    """One picture as the graph takes it.

    Args:
        picture: a path, the bytes of a file, an open binary file, a Pillow image; or uint8 [H,W,C] with the graph's
            channels in the graph's order, which is given as it is, or [H,W] or [H,W,1], grey.
        given: what the graph takes.
        config: how it prepares pictures.
        name: what messages call it where it is not a path.

    Returns:
        uint8 [H,W,C]; of another size than the picture where Pillow resized it.

    Raises:
        ImageError: it is missing, truncated, undecodable, empty, or too large to be decoded safely.
        InputError: it is of another size than the graph takes, or an array of another dtype or shape.
        BackendUnavailableError: Pillow is needed, and not installed.
    """
    if isinstance(picture, np.ndarray):
        return _of_array(picture, given, config, name)
    return pictures.using(
        cast("Source", picture), lambda image, called: _of_image(image, given, config, called), name=name
    )


def _of_array(picture: npt.NDArray[np.generic], given: PixelInput, config: Preprocess, name: str) -> UInt8:
    pixels = _checked(picture, given, name)
    channels = pixels.shape[2]
    if channels == _RGBA and (not given.has_alpha or pixels[..., 3].min() < _OPAQUE):
        # What becomes of it is for Pillow to say.
        return _pillows(_reordered(pixels, given), given, config, name)
    _check_size(pixels.shape[0], pixels.shape[1], given, config, name)
    return np.ascontiguousarray(_with_alpha(pixels) if given.has_alpha and channels != _RGBA else pixels)


def _checked(picture: npt.NDArray[np.generic], given: PixelInput, name: str) -> UInt8:
    """The same as [H,W,3] or [H,W,4], in the graph's order."""
    channels = picture.shape[2] if picture.ndim == _RGB else 1
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or channels not in (1, _RGB, _RGBA):
        message = (
            f"{name} is {picture.dtype} {list(picture.shape)}: this graph takes raw pixels, uint8 [H,W,"
            f"{len(given.channels)}] ({given.channels}), and prepares them itself. Put the channels last"
        )
        raise InputError(message)
    if 0 in picture.shape:
        message = f"{name} has no pixels: its shape is {list(picture.shape)}"
        raise ImageError(message)
    pixels = cast("UInt8", picture)
    if channels == 1:
        height, width = pixels.shape[:2]
        return np.broadcast_to(pixels.reshape(height, width, 1), (height, width, _RGB))
    return pixels


def _pillows(pixels: UInt8, given: PixelInput, config: Preprocess, name: str) -> UInt8:
    """As if RGB or RGBA had come as a picture."""
    return pictures.using(pixels, lambda image, called: _of_image(image, given, config, called), name=name)


def _of_image(image: "Image.Image", given: PixelInput, config: Preprocess, name: str) -> UInt8:
    _check_size(image.height, image.width, given, config, name)
    if _is_plain(image):
        # Converting RGB to RGB would copy it.
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    elif given.size is None:
        pixels = resize_and_crop(image, config)
    else:
        message = (
            f"{name} is of mode {image.mode}, which open_clip resizes before it is RGB: a graph of fixed size resizes "
            "RGB, grey and opaque pictures. Convert it to RGB first if that is what is meant"
        )
        raise InputError(message)
    pixels = _reordered(pixels, given)
    return np.ascontiguousarray(_with_alpha(pixels) if given.has_alpha else pixels)


def _is_plain(image: "Image.Image") -> bool:
    if image.mode in _ALPHA_MODES:
        return image.getchannel("A").getextrema() == (_OPAQUE, _OPAQUE)
    return image.mode in _PLAIN_MODES


def _check_size(height: int, width: int, given: PixelInput, config: Preprocess, name: str) -> None:
    if given.size is not None and given.size != (height, width):
        message = (
            f"{name} is {width} x {height}: this graph takes pictures of {given.size[1]} x {given.size[0]} alone. Give "
            "those, or export without --pixels-size"
        )
        raise InputError(message)
    if min(resized_size(height, width, config)) < 1:
        message = f"{name} is {width} x {height}: resized as the model takes pictures, nothing is left of it"
        raise ImageError(message)


def _reordered(pixels: UInt8, given: PixelInput) -> UInt8:
    """RGB out of the graph's order, or the graph's order out of RGB; alpha stays last."""
    order = CHANNEL_ORDERS[given.channels]
    return pixels if order == (0, 1, 2) else pixels[..., [*order, 3][: pixels.shape[2]]]


def _with_alpha(pixels: UInt8) -> UInt8:
    return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), _OPAQUE, np.uint8)], axis=2)
