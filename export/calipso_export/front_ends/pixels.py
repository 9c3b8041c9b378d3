"""Pixels: the input is a picture as it was decoded, and the graph prepares it.

The graph is traced, calibrated and lowered with prepared images as its input; what prepares them is put before it when
it is written (`calipso_export.pixels`). Eager PyTorch takes the same pictures through open_clip's own transform.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from PIL import Image, ImageOps

from calipso_export.front_ends.base import Content, Float32
from calipso_export.front_ends.pictures import PicturesFrontEnd
from calipso_export.photos import opened
from calipso_export.pixels import attach
from calipso_runtime import pictures, pixels
from calipso_runtime.errors import UsageError
from calipso_runtime.manifest import PIXELS, Preprocess
from calipso_runtime.pixel_input import PixelInput
from calipso_runtime.preprocess import resized_size

if TYPE_CHECKING:
    from calipso_runtime.pictures import Picture

_EDGE_SEED = 1
# Short side 1, both orders of the two passes, primes, and sizes at which a crop's start is a half.
_ODD_SIZES = ((1, 2), (5000, 1), (1, 300), (331, 127), (127, 331), (255, 257), (40, 21), (97, 96))


class PixelsFrontEnd(PicturesFrontEnd):
    """See `FrontEnd`.

    Args:
        preprocess: how the graph prepares a picture.
        transform: open_clip's own evaluation transform: PIL image -> float32 [3,H,W].
        taken: what the graph takes.
    """

    def __init__(
        self, preprocess: Preprocess, transform: Callable[[Image.Image], torch.Tensor], taken: PixelInput
    ) -> None:
        super().__init__(preprocess, transform)
        self.taken = taken
        if taken.size is not None and min(resized_size(*taken.size, preprocess)) < 1:
            message = (
                f"pixels_size is {taken.size[0]}x{taken.size[1]}: resized as the model takes pictures, nothing is left"
            )
            raise UsageError(message)

    def attached(self, graph: ir.Model, *, casts_first: bool = True) -> ir.Model:
        """With the preparation before it."""
        return attach(graph, self.taken, self.preprocess, casts_first=casts_first)

    def shown(self, content: Content) -> Content:
        """The picture itself; where the graph takes one size, cut and scaled to it, RGB."""
        if self.taken.size is None:
            return content
        if not isinstance(content, Image.Image):
            with opened(cast("Any", content)) as image:
                return self.shown(image.copy())
        size = self.taken.size[::-1]
        image = content.convert("RGB")
        return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BICUBIC)

    def given(self, content: Content, *, name: str) -> Float32:
        """Prepared as the graph prepares it: what the graph takes before the preparation is put before it."""
        return super().given(self.shown(content), name=name)

    def carried(self, content: Content, *, name: str) -> npt.NDArray[Any]:
        """As the graph takes it; where it takes any size, at the one at which it has nothing left to resize."""
        shown = self.shown(content)
        if self.taken.size is None:
            shown = Image.fromarray(pictures.pixels(cast("Picture", shown), self.preprocess, name=name))
        return pixels.array(shown, self.taken, self.preprocess, name=name)

    def eager_input(self, content: Content) -> torch.Tensor:
        """By open_clip's transform."""
        return super().eager_input(self.shown(content))

    def edge_cases(self) -> dict[str, Content]:
        """Sizes and modes on which a resize goes wrong first."""
        generator = np.random.default_rng(_EDGE_SEED)

        def noise(height: int, width: int) -> Image.Image:
            return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))

        if self.taken.size is not None:
            height, width = self.taken.size
            stripes = np.zeros((height, width, 3), np.uint8)
            stripes[::2, 1::2] = 255
            return {
                "black": Image.new("RGB", (width, height)),
                "white": Image.new("RGB", (width, height), "white"),
                "noise": noise(height, width),
                "stripes": Image.fromarray(stripes),
            }
        odd: dict[str, Content] = {
            f"{height} x {width}": noise(height, width)
            for height, width in _ODD_SIZES
            # Where the longer side is fitted, Pillow refuses what has nothing left.
            if min(resized_size(height, width, self.preprocess)) >= 1
        }
        return {**super().edge_cases(), **odd, "palette": noise(150, 100).convert("P")}

    def as_json(self) -> dict[str, Any]:
        """What any host needs to know to give it pictures."""
        return {"name": PIXELS, **self.taken.as_json()}
