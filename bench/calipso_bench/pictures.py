"""The pictures that a benchmark asks about: some of a folder's, or made-up ones."""

import dataclasses
import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calipso_bench.contenders.numpy_ends import preprocessed
from calipso_runtime.commands.collect import collect
from calipso_runtime.manifest import Preprocess

# Every fourth made-up picture is large. Batches begin at multiples of this, so that all hold the same mix.
STRIDE = 4
_SMALL, _LARGE = (640, 427), (1920, 1280)
# Of the noise that is enlarged to a smooth picture, and the largest grain over it, in levels.
_PATCH_PX = 40
_GRAIN = 10
_QUALITY = 90
SYNTHETIC = "made-up JPEGs (smooth noise), three in four 640x427, one 1920x1280"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """Encoded pictures, and what an encoder gets of them.

    Attributes:
        encoded: the bytes of N files.
        images: float32 [N,3,H,W], normalised, preprocessed by the runtime.
        source: where they come from, in words.
        sha256: of all bytes, so that two runs can tell whether they saw the same pictures.
    """

    encoded: tuple[bytes, ...]
    images: npt.NDArray[np.float32]
    source: str
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What one call is asked about: places of the pictures, their bytes, and float32 [B,3,H,W]."""

    places: tuple[int, ...]
    encoded: tuple[bytes, ...]
    images: npt.NDArray[np.float32]


def gather(folder: Path | None, count: int, preprocess: Preprocess, *, seed: int) -> Pictures:
    """Take `count` pictures, evenly out of a folder and again from its beginning if it has fewer, or make them up.

    Raises:
        UsageError: the folder holds no pictures.
        ImageError: one cannot be decoded.
    """
    if folder is None:
        encoded, source = made_up(count, seed=seed), SYNTHETIC
    else:
        paths = collect([str(folder)])
        wanted = min(count, len(paths))
        chosen = [Path(paths[place * len(paths) // wanted]) for place in range(wanted)]
        encoded = tuple(chosen[place % wanted].read_bytes() for place in range(count))
        source = f"{wanted} of {len(paths)} pictures of the folder {folder.name}"
    digest = hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in encoded))
    images = preprocessed(encoded, preprocess)
    return Pictures(encoded=encoded, images=images, source=source, sha256=digest.hexdigest())


def made_up(count: int, *, seed: int) -> tuple[bytes, ...]:
    """JPEGs that compress about like photos, the same bytes for the same seed and Pillow."""
    generator = np.random.default_rng(seed)
    return tuple(_jpeg(generator, _LARGE if place % STRIDE == STRIDE - 1 else _SMALL) for place in range(count))


def batches(pictures: Pictures, size: int, *, most: int) -> list[Batch]:
    """At most `most` different batches of a size, all with the same mix of made-up pictures."""
    count = len(pictures.encoded)
    starts = range(0, count, STRIDE)[:most]
    return [_batch(pictures, [(start + place) % count for place in range(size)]) for start in starts]


def all_batches(pictures: Pictures, size: int) -> list[Batch]:
    """Every picture at least once, in batches of a size."""
    count = len(pictures.encoded)
    return [_batch(pictures, [(start + place) % count for place in range(size)]) for start in range(0, count, size)]


def _batch(pictures: Pictures, places: list[int]) -> Batch:
    return Batch(
        places=tuple(places),
        encoded=tuple(pictures.encoded[place] for place in places),
        images=np.ascontiguousarray(pictures.images[places]),
    )


def _jpeg(generator: np.random.Generator, size: tuple[int, int]) -> bytes:
    from PIL import Image

    width, height = size
    patches = generator.integers(0, 256, (height // _PATCH_PX + 1, width // _PATCH_PX + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC), np.int16)
    grained = smooth + generator.integers(-_GRAIN, _GRAIN, smooth.shape, dtype=np.int16, endpoint=True)
    stream = io.BytesIO()
    Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
