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
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.fewshot.search import leave_one_out, search_tip_adapter
from calipso_export.heads.few_shot import FewShotHead, Fit, FoldedHead, Shots
from calipso_export.progress import Progress

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

    def __init__(
        self, keys: torch.Tensor, real: torch.Tensor, parameters: TipAdapterParameters, logs: torch.Tensor | None
    ) -> None:
        """Take keys [C,S,D], which of them are real [C,S], and the logarithms of their weights [C,S,1]."""
        super().__init__()
        classes, shots, width = keys.shape
        self.shots = shots
        # [D,C*S]: the way the MatMul reads it, so that the file holds it once.
        self.keys = nn.Parameter((parameters.beta * keys).reshape(classes * shots, width).T.contiguous(), False)  # noqa: FBT003
        offset = math.log(parameters.alpha) - parameters.beta
        self.offset: torch.Tensor | float = offset
        if logs is not None or not bool(real.all()):
            own = offset if logs is None else offset + logs.flatten()
            self.offset = nn.Parameter(torch.where(real.flatten(), own, _MINUS_INFINITY).float(), False)  # noqa: FBT003

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        affinity = (image @ self.keys + self.offset).exp()
        return affinity.reshape(image.shape[0], -1, self.shots).sum(dim=-1)


class TipAdapterHead(FoldedHead):
    """The cache, with beta and alpha folded in and no one-hot matrix.

    Args:
        keys: float32 [M,D], L2-normalised features of the example photos, in any order.
        labels: int64 [M], the class index of each key.
        classes: number of classes K; every one has at least one key.
        parameters: alpha > 0 and beta.
        logs: float32 [M], logarithm of what each key's value is multiplied by; None for Tip-Adapter's own, 1.

    Attributes:
        layout: of each block, how many classes it holds and how many keys each has, padding included.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        labels: torch.Tensor,
        *,
        classes: int,
        parameters: TipAdapterParameters,
        logs: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        counts = torch.bincount(labels, minlength=classes)
        groups = _groups(counts)
        self.blocks = nn.ModuleList(
            _Block(
                *_padded(keys, labels, group, counts),
                parameters,
                None if logs is None else _padded(logs[:, None], labels, group, counts)[0],
            )
            for group in groups
        )
        self.layout = tuple((len(group), int(counts[group].max())) for group in groups)
        order = torch.cat(groups)
        # Back from the order of the groups to the order of the classes.
        self.order = None if len(groups) == 1 else nn.Parameter(order.argsort(), requires_grad=False)

    def forward(self, image: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002 - needs no text
        """L2-normalised features float32 [B,D] -> what the cache adds to the logits, float32 [B,K]."""
        if self.order is None:
            return self.blocks[0](image)  # type: ignore[no-any-return]
        return torch.cat([block(image) for block in self.blocks], dim=1).index_select(1, self.order)

    def describe(self) -> dict[str, Any]:
        """What it takes to unfold the keys again. torch's exporter renames the head's own `order`."""
        return {
            "cache_layout": [list(block) for block in self.layout],
            "cache_order": None if self.order is None else self.order.tolist(),
        }


class TipAdapter(FewShotHead):
    """The cache as published.

    Args:
        keys: float32 [M,D], L2-normalised, in any order.
        labels: int64 [M], class index of each key; every class has at least one.
        alpha: weighs the cache against the text.
        beta: sharpens its affinities.
    """

    name: ClassVar[str] = "tip-adapter"
    title: ClassVar[str] = "Tip-Adapter"
    keys: torch.Tensor
    labels: torch.Tensor
    values: torch.Tensor

    def __init__(self, *, keys: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float) -> None:
        super().__init__()
        self.parameters_ = TipAdapterParameters(alpha=alpha, beta=beta)
        self.register_buffer("keys", keys)
        self.register_buffer("labels", labels)
        self.register_buffer("values", functional.one_hot(labels).float(), persistent=False)

    @classmethod
    def fit(cls, shots: Shots, progress: Progress) -> Fit:
        """Search alpha and beta, by leave-one-out where there are no validation photos; of single photos by a prior."""
        photos = shots.photos
        judged = shots.validation
        base = shots.zero_shot(photos if judged is None else judged)
        choice = search_tip_adapter(photos, base, progress, judged=judged)
        found = None if choice.values is None else cls(keys=photos.keys, labels=photos.labels, **choice.values)

        def held_out(rows: torch.Tensor) -> torch.Tensor:
            alpha, beta = choice.record["best"]["alpha"], choice.record["best"]["beta"]
            return cast("torch.Tensor", alpha * leave_one_out(photos, rows, beta, len(shots.text)))

        return Fit(
            head=found,
            record=choice.record,
            curve=choice.curve,
            held_out=held_out,
            refit=partial(cls.of_shots, **choice.record["best"]),
        )

    @classmethod
    def of_shots(cls, shots: Shots, *, alpha: float, beta: float) -> "TipAdapter":
        """The cache of some photos, with given settings."""
        return cls(keys=shots.photos.keys, labels=shots.photos.labels, alpha=alpha, beta=beta)

    def forward(self, image: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:  # noqa: ARG002 - needs no text
        """See `reference`."""
        return reference(image, self.keys, self.values, parameters=self.parameters_)

    def fold(self, text: torch.Tensor, scale: float) -> TipAdapterHead:  # noqa: ARG002 - needs no text
        """See `FewShotHead.fold`."""
        return TipAdapterHead(self.keys, self.labels, classes=self.values.shape[1], parameters=self.parameters_)

    @classmethod
    def unfold(
        cls, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any], graph: Mapping[str, Any]
    ) -> "TipAdapter":
        """See `FewShotHead.unfold`."""
        keys, labels = unfold_cache(weights, record, graph)
        return cls(keys=keys, labels=labels, alpha=record["alpha"], beta=record["beta"])

    def parameters_by_name(self) -> dict[str, float]:
        """Alpha and beta."""
        return {"alpha": float(self.parameters_.alpha), "beta": float(self.parameters_.beta)}


def reference(
    image: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, parameters: TipAdapterParameters
) -> torch.Tensor:
    """The formula as published: [B,D], [M,D] and one-hot [M,K] -> what is added to [B,K]."""
    affinity = image @ keys.T
    return parameters.alpha * (-parameters.beta * (1 - affinity)).exp() @ values


def unfold_cache(
    weights: Mapping[str, torch.Tensor], record: Mapping[str, Any], graph: Mapping[str, Any], prefix: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and labels out of a file, as `unfold` gives them; the names of the head's weights start with the prefix."""
    layout, order = graph["cache_layout"], graph["cache_order"]
    blocks = [weights[f"{prefix}blocks.{index}.keys"] for index in range(len(layout))]
    return unfold(blocks, layout, None if order is None else torch.tensor(order), beta=record["beta"])


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
