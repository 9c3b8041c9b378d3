"""Decodes pictures: path, bytes, open file, Pillow image or uint8 pixels -> the graph's float32 input.

Every way in which a picture can be unusable becomes one ImageError that names it. Pillow's global
settings are respected and never changed.
"""

import contextlib
import io
import os
import struct
import zlib
from typing import IO, TYPE_CHECKING, TypeAlias, TypeVar, Union

import numpy as np
import numpy.typing as npt

from calipso_runtime import preprocess
from calipso_runtime.errors import BackendUnavailableError, CalipsoError, ImageError, InputError
from calipso_runtime.manifest import Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from PIL import Image

# One picture that Pillow opens, or has opened; and one in any form that `decode` takes.
Source: TypeAlias = Union[str, "os.PathLike[str]", bytes, IO[bytes], "Image.Image"]
Picture: TypeAlias = Source | npt.NDArray[np.uint8]
Made = TypeVar("Made")

# What Pillow raises on damaged files. Fuzzing 25 kinds of file showed OSError, SyntaxError and ValueError;
# the others are what parsing bytes can raise, and its many plugins do not all wrap them.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    UserWarning,  # where the caller made warnings errors
    struct.error,
    zlib.error,
)
_CHANNELS = (1, 3, 4)
# Pillow's modes I;16 and its like, I of 32 bits, F of floats.
_DEEP_GREY = ("I", "F")


def decode(picture: Picture, config: Preprocess, *, name: str) -> npt.NDArray[np.float32]:
    """Decode and preprocess one picture.

    Args:
        picture: a path, the bytes of a file, a file opened in binary mode, a Pillow image (as it
            is: the current frame), or uint8 pixels [H,W,3], [H,W,4], [H,W,1] or [H,W].
        config: the bundle's preprocessing.
        name: what messages call it where it is not a path, "image 3".

    Returns:
        float32 [3,H,W], normalised, equal to open_clip's transform of the same picture. The EXIF
        orientation is not applied, and of an animation the first frame counts, as there.

    Raises:
        ImageError: it is missing, truncated, undecodable, empty, or too large to be decoded safely.
        InputError: the array has another dtype or shape.
        BackendUnavailableError: Pillow is not installed.
    """
    return preprocess.normalise(pixels(picture, config, name=name), config)


def pixels(picture: Picture, config: Preprocess, *, name: str) -> npt.NDArray[np.uint8]:
    """As `decode`, before the normalisation: uint8 [H,W,3] at the graph's size."""
    return using(picture, lambda image, _: preprocess.resize_and_crop(image, config), name=name)


def using(picture: Picture, function: "Callable[[Image.Image, str], Made]", *, name: str) -> Made:
    """What a function makes of a decoded picture; see `decode` for the arguments and errors.

    Args:
        picture: see there.
        function: of the picture, and of what messages call it; may raise what Pillow raises on pictures that cannot be
            used, and errors of ours.
        name: see there.
    """
    image_module = _pillow()
    if isinstance(picture, str | os.PathLike):
        name = os.fsdecode(picture)
    if isinstance(picture, np.ndarray):
        picture = _image_of(picture, name)
    try:
        with _opened(picture, name) as image:
            _check_depth(image, name)
            return function(image, name)
    except CalipsoError:
        raise
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except image_module.UnidentifiedImageError as error:
        message = f"{name} cannot be used as a picture: it is empty, or of no kind that Pillow knows"
        raise ImageError(message) from error
    except _DECODER_ERRORS as error:
        # "[Errno 2] No such file or directory: 'cat.jpg'" would name the file a second time.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        message = f"{name} cannot be used as a picture: {reason}"
        raise ImageError(message) from error


def _check_depth(image: "Image.Image", name: str) -> None:
    """Refuse grey of more than 8 bits: as RGB all above 255 is white, and fractions are black, without a word."""
    if image.mode.startswith(_DEEP_GREY):
        message = (
            f"{name} is a grey picture of more than 8 bits a pixel (Pillow's mode {image.mode}): of such numbers only "
            "those up to 255 are kept. Scale it to 8 bits first, by the range that the camera uses"
        )
        raise ImageError(message)


def _pillow() -> "ModuleType":
    try:
        from PIL import Image
    except ImportError as error:
        message = (
            "Pillow is not installed, so pictures cannot be decoded: pip install 'calipso[ort]', "
            "or pass float32 [3,H,W] that is preprocessed already"
        )
        raise BackendUnavailableError(message) from error
    return Image


@contextlib.contextmanager
def _opened(picture: "Source", name: str) -> "Iterator[Image.Image]":
    """The picture, decoded. A file is closed again; what the caller opened stays open."""
    from PIL import Image

    if isinstance(picture, Image.Image):
        _check_not_empty(picture, name)
        yield picture
        return
    source = io.BytesIO(picture) if isinstance(picture, bytes | bytearray | memoryview) else picture
    with Image.open(source) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise _too_large(name, f"it has {image.width} x {image.height} pixels, Pillow's limit is {limit}")
        _check_not_empty(image, name)
        image.load()
        yield image


def _image_of(array: npt.NDArray[np.uint8], name: str) -> "Image.Image":
    from PIL import Image

    channels = array.shape[2] if array.ndim == 3 else 1  # noqa: PLR2004 - [H,W,C]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in _CHANNELS:
        message = (
            f"{name} is {array.dtype} {list(array.shape)}: expected uint8 [H,W,3], [H,W,4], [H,W,1] or [H,W]. "
            "Put the channels last"
        )
        raise InputError(message)
    if 0 in array.shape:
        message = f"{name} has no pixels: its shape is {list(array.shape)}"
        raise ImageError(message)
    plane = array[:, :, 0] if array.ndim == 3 and channels == 1 else array  # noqa: PLR2004 - [H,W,1]
    return Image.fromarray(np.ascontiguousarray(plane))


def _check_not_empty(image: "Image.Image", name: str) -> None:
    if 0 in image.size:
        message = f"{name} has no pixels: it is {image.width} x {image.height}"
        raise ImageError(message)


def _too_large(name: str, reason: str) -> ImageError:
    message = (
        f"{name} is too large to be decoded safely: {reason}. "
        "If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS before, or scale it down"
    )
    return ImageError(message)
