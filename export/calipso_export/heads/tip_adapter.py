"""Tip-Adapter: a key-value cache of a few example photos per class.

Source: Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
ECCV 2022; released code gaopengcuhk/Tip-Adapter, main.py. With keys [M,D] and one-hot values [M,K]:

    logits += alpha exp(-beta (1 - f.keys')) values

Folded: `alpha exp(-beta (1 - a)) = exp(beta a + (log alpha - beta))`, so beta goes into the keys and
alpha into a bias. With the keys sorted by class and padded to equal shots, the product with the
one-hot values is a reshape and a sum: no [M,K] matrix. Very unequal shots are grouped by size.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import nn

# One padded block while it holds at most this many times the real keys; else blocks by size.
_MAX_PADDING = 1.25
# exp of this is 0 in fp32 and it is finite in fp16: what a padding key contributes.
_MINUS_INFINITY = -1e4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TipAdapterParameters:
    """alpha weighs the cache against the text; beta sharpens its affinities."""

    alpha: float
    beta: float


class _Block(nn.Module):
    """The classes of similar size: keys padded to the same number of shots per class."""

    def __init__(self, keys: torch.Tensor, real: torch.Tensor, parameters: TipAdapterParameters) -> None:
        """Take keys [C,S,D] and which of them are real [C,S]."""
        super().__init__()
        classes, shots, width = keys.shape
        self.shots = shots
        # [D,C*S]: the way the MatMul reads it, so that the file holds it once.
        self.keys = nn.Parameter((parameters.beta * keys).reshape(classes * shots, width).T.contiguous(), False)  # noqa: FBT003
        offset = math.log(parameters.alpha) - parameters.beta
        self.offset: torch.Tensor | float = offset
        if not bool(real.all()):
            self.offset = nn.Parameter(torch.where(real.flatten(), offset, _MINUS_INFINITY).float(), False)  # noqa: FBT003

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        affinity = (image @ self.keys + self.offset).exp()
        return affinity.reshape(image.shape[0], -1, self.shots).sum(dim=-1)


class TipAdapterHead(nn.Module):
    """The cache, with beta and alpha folded in and no one-hot matrix.

    Args:
        keys: float32 [M,D], L2-normalised features of the example photos, in any order.
        labels: int64 [M], the class index of each key.
        classes: number of classes K; every one has at least one key.
        parameters: alpha > 0 and beta.

    Attributes:
        layout: of each block, how many classes it holds and how many keys each has, padding included.
    """

    def __init__(
        self, keys: torch.Tensor, labels: torch.Tensor, *, classes: int, parameters: TipAdapterParameters
    ) -> None:
        super().__init__()
        counts = torch.bincount(labels, minlength=classes)
        groups = _groups(counts)
        self.blocks = nn.ModuleList(_Block(*_padded(keys, labels, group, counts), parameters) for group in groups)
        self.layout = tuple((len(group), int(counts[group].max())) for group in groups)
        order = torch.cat(groups)
        # Back from the order of the groups to the order of the classes.
        self.order = None if len(groups) == 1 else nn.Parameter(order.argsort(), requires_grad=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """L2-normalised features float32 [B,D] -> what the cache adds to the logits, float32 [B,K]."""
        if self.order is None:
            return self.blocks[0](image)  # type: ignore[no-any-return]
        return torch.cat([block(image) for block in self.blocks], dim=1).index_select(1, self.order)


def reference(
    image: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, parameters: TipAdapterParameters
) -> torch.Tensor:
    """The formula as published: [B,D], [M,D] and one-hot [M,K] -> what is added to [B,K]."""
    affinity = image @ keys.T
    return parameters.alpha * (-parameters.beta * (1 - affinity)).exp() @ values


def unfold(
    blocks: Sequence[torch.Tensor],
    layout: Sequence[Sequence[int]],
    order: torch.Tensor | None,
    *,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the keys back out of a head's weights.

    Args:
        blocks: the `keys` of each block, [D,C*S].
        layout: the head's `layout`.
        order: the head's `order`, None with a single block.
        beta: what was folded into the keys.

    Returns:
        keys float32 [M,D], L2-normalised, without padding, sorted by class; labels int64 [M].
    """
    widths = [classes for classes, _ in layout]
    class_of = torch.arange(sum(widths)) if order is None else order.argsort()
    keys = torch.cat([block.T for block in blocks]) / beta
    labels = torch.cat(
        [own.repeat_interleave(shots) for own, (_, shots) in zip(torch.split(class_of, widths), layout, strict=True)]
    )
    real = keys.square().sum(dim=1) > 0
    keys, labels = keys[real], labels[real]
    by_class = labels.argsort(stable=True)
    return keys[by_class], labels[by_class]


def _groups(counts: torch.Tensor) -> list[torch.Tensor]:
    """Class indices, grouped so that padding stays small: one group where shots are about equal."""
    if counts.max() * len(counts) <= _MAX_PADDING * counts.sum():
        return [torch.arange(len(counts))]
    sizes = torch.tensor([(int(count) - 1).bit_length() for count in counts])
    return [(sizes == size).nonzero().flatten() for size in torch.unique(sizes)]


def _padded(
    keys: torch.Tensor, labels: torch.Tensor, group: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [C,S,D] of the classes of a group, and which of them are real [C,S]."""
    shots = int(counts[group].max())
    padded = keys.new_zeros(len(group), shots, keys.shape[1])
    real = torch.zeros(len(group), shots, dtype=torch.bool)
    for row, index in enumerate(group):
        own = keys[labels == index]
        padded[row, : len(own)] = own
        real[row, : len(own)] = True
    return padded, real
