"""Pictures: the input is one preprocessed image, and the tower encodes it as it is."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from PIL import Image
from torch import nn

from calipso_export.front_ends.base import Content, Float32
from calipso_export.photos import opened
from calipso_runtime.commands.collect import PICTURE_EXTENSIONS
from calipso_runtime.inputs import tensor
from calipso_runtime.manifest import Preprocess
from calipso_runtime.pictures import Picture, pixels

if TYPE_CHECKING:
    from pathlib import Path

_EDGE_SEED = 0


class PicturesFrontEnd:
    """See `FrontEnd`.

    Args:
        preprocess: how the runtime prepares a picture.
        transform: open_clip's own evaluation transform: PIL image -> float32 [3,H,W].
    """

    name: ClassVar[str] = "image"
    extensions: ClassVar[frozenset[str]] = PICTURE_EXTENSIONS
    is_augmented: ClassVar[bool] = True
    images = 1

    def __init__(self, preprocess: Preprocess, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.preprocess = preprocess
        self.transform = transform

    @property
    def shape(self) -> tuple[int, ...]:
        """[3,H,W]."""
        return (3, *self.preprocess.size)

    def modules(self) -> tuple[nn.Module | None, nn.Module | None]:
        """None are needed."""
        return None, None

    def attached(self, graph: ir.Model, *, casts_first: bool = True) -> ir.Model:  # noqa: ARG002
        """Nothing is missing."""
        return graph

    def shown(self, content: Content) -> Content:
        """Itself."""
        return content

    def given(self, content: Content, *, name: str) -> Float32:
        """See `FrontEnd.given`."""
        return tensor(content, self.preprocess, name=name)

    def carried(self, content: Content, *, name: str) -> npt.NDArray[Any]:
        """Its pixels at the graph's size: four bytes become one."""
        return pixels(cast("Picture", content), self.preprocess, name=name)

    def eager_input(self, content: Content) -> torch.Tensor:
        """By open_clip's transform."""
        if isinstance(content, Image.Image):
            return self.transform(content)
        with opened(cast("Path", content)) as image:
            return self.transform(image)

    def eager_images(self, batch: torch.Tensor) -> torch.Tensor:
        """The pictures themselves."""
        return batch

    def eager_feature(self, pooled: torch.Tensor) -> torch.Tensor:
        """The features themselves."""
        return pooled

    def edge_cases(self) -> dict[str, Content]:
        """Of every mode and shape that is rare in photographs."""
        generator = np.random.default_rng(_EDGE_SEED)

        def noise(height: int, width: int, channels: int) -> Image.Image:
            pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
            return Image.fromarray(pixels.squeeze(axis=-1) if channels == 1 else pixels)

        return {
            "black": Image.new("RGB", (320, 240)),
            "white": Image.new("RGB", (240, 320), "white"),
            "noise": noise(256, 256, 3),
            "wide": noise(16, 512, 3),
            "tall": noise(512, 16, 3),
            "one pixel": noise(1, 1, 3),
            "tiny": noise(3, 2, 3),
            "greyscale": noise(100, 150, 1),
            "transparent": noise(120, 90, 4),
        }

    def as_json(self) -> dict[str, Any]:
        """Its name: all else is in the manifest's `preprocess`."""
        return {"name": self.name}
