"""What stands before the vision tower: the graph's input, how it becomes images, and how their features become one."""

from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from PIL import Image
from torch import nn

Float32: TypeAlias = npt.NDArray[np.float32]
# One thing to classify: a file; or one that was made here.
Content: TypeAlias = Path | Image.Image | Float32


class FrontEnd(Protocol):
    """How one kind of input reaches the tower, in the graph and in eager PyTorch.

    Attributes:
        name: of the traced graph's input.
        extensions: of its files, in lower case.
        is_augmented: whether a cache's keys are averaged over augmented views of an example.
    """

    name: ClassVar[str]
    extensions: ClassVar[frozenset[str]]
    is_augmented: ClassVar[bool]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one item in the graph's input."""

    @property
    def images(self) -> int:
        """How many images the tower encodes for one item."""

    def modules(self) -> tuple[nn.Module | None, nn.Module | None]:
        """What is traced before the tower, input -> images; and after it, (global, tokens) -> (global, tokens)."""

    def attached(self, graph: ir.Model, *, casts_first: bool = True) -> ir.Model:
        """The finished graph with what is not traced before it, in a copy; the graph itself where there is nothing.

        Args:
            graph: the finished graph.
            casts_first: as TensorRT needs it; for ONNX Runtime not.
        """

    def shown(self, content: Content) -> Content:
        """What both sides of a comparison are given for it: itself, but where the graph takes less than any picture."""

    def given(self, content: Content, *, name: str) -> Float32:
        """One item as the traced graph takes it.

        Raises:
            ImageError: a file cannot be read.
            InputError: what it holds cannot be classified.
        """

    def carried(self, content: Content, *, name: str) -> npt.NDArray[Any]:
        """One item as `reference.npz` holds it."""

    def eager_input(self, content: Content) -> torch.Tensor:
        """The same, prepared for eager PyTorch."""

    def eager_images(self, batch: torch.Tensor) -> torch.Tensor:
        """What the tower encodes, [B*images,3,H,W], by the published formulas."""

    def eager_feature(self, pooled: torch.Tensor) -> torch.Tensor:
        """Global features of all images [B*images,D] -> of the items [B,D], not normalised."""

    def edge_cases(self) -> dict[str, Content]:
        """Items, by name, on which preparation and normalisation go wrong first."""

    def as_json(self) -> dict[str, Any]:
        """For the manifest: what a reader needs to prepare the input, and to rebuild this."""
