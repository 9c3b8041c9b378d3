"""What a few-shot head is: a method that adds a term to the zero-shot logits, learned from a few photos per class.

It has two forms. A `FewShotHead` computes the formula as published, over tensors as the paper names them:
what every file is held against. Its `fold` gives the `FoldedHead` that is traced, with all that is constant
multiplied into its weights; `unfold` goes back from the weights of a file, so that a bundle can be verified
where the photos are gone.

A new head is one file with both, and one line in `heads.FEW_SHOT`.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.folds import folds
from calipso_export.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots:
    """What a head is fitted on.

    Attributes:
        photos: features and labels of the example photos.
        text: float32 [K,D], L2-normalised text features of the classes.
        scale: the checkpoint's exp(logit_scale).
        bias: its logit bias, 0 where it has none.
        classes: their names, for messages.
        validation: photos to choose hyper-parameters on; where None they are taken from `photos`.
        folder: where training keeps its state, to go on after an interruption; None keeps nothing.
    """

    photos: PhotoFeatures
    text: torch.Tensor
    scale: float
    bias: float
    classes: tuple[str, ...]
    validation: PhotoFeatures | None = None
    folder: Path | None = None

    def zero_shot(self, photos: PhotoFeatures) -> torch.Tensor:
        """The plain classifier's logits of some photos, float32 [N,K]."""
        return self.scale * photos.plain @ self.text.T + self.bias

    def without(self, held: torch.Tensor) -> "Shots":
        """All photos but those of these rows, which nothing may be chosen on either."""
        kept = torch.ones(len(self.photos.labels), dtype=torch.bool)
        kept[held] = False
        return dataclasses.replace(self, photos=self.photos.rows(kept.nonzero().flatten()), validation=None)

    def without_classes(self, held: torch.Tensor) -> "tuple[Shots, Shots]":
        """The other classes with their photos; and these classes' photos, whose labels name none of the others."""
        known = torch.ones(len(self.classes), dtype=torch.bool)
        known[held] = False
        # CALIP's terms of the others: the second one's softmax has still seen the classes that are held out.
        photos = dataclasses.replace(self.photos, calip=self.photos.calip[:, :, known])
        is_known = known[photos.labels]
        rest, strangers = (photos.rows(rows.nonzero().flatten()) for rows in (is_known, ~is_known))
        rest = dataclasses.replace(rest, labels=(known.cumsum(dim=0) - 1)[rest.labels])
        names = tuple(name for name, kept in zip(self.classes, known.tolist(), strict=True) if kept)
        fitting = dataclasses.replace(self, photos=rest, text=self.text[known], classes=names, validation=None)
        return fitting, dataclasses.replace(fitting, photos=strangers)

    def splits(self) -> Iterator[tuple["Shots", PhotoFeatures]]:
        """What to fit on, and what to judge it on: the validation photos, or one fold of the shots after the other.

        Raises:
            ShotsError: a class has one photo only, and there are no validation photos.
        """
        if self.validation is not None:
            yield self, self.validation
            return
        for held in folds(self.photos.labels, self.photos.contents, self.classes):
            yield self.without(held), self.photos.rows(held)


Added = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted head, and how it was.

    Attributes:
        head: None where the plain classifier was at least as good.
        record: for the manifest: the method, photos used, accuracy without and with the head.
        curve: what the report draws: points with one axis, `accuracy`, and `loss` where something was trained.
        held_out: rows of the shots -> what a head that was fitted without each of them adds to its logits, [N,K].
        refit: other shots -> this head on them, with the same settings.
    """

    head: "FewShotHead | None"
    record: dict[str, Any]
    curve: list[dict[str, float]]
    held_out: Added
    refit: "Callable[[Shots], FewShotHead]"


class FoldedHead(nn.Module):
    """The form that is traced."""

    def forward(self, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Compute what the head adds to the logits.

        Args:
            image: float32 [B,D], L2-normalised.
            weight: float32 [D,K], the zero-shot weights: the text features times the scale.

        Returns:
            float32 [B,K].
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What `unfold` needs beside the weights; it goes into the manifest's `graph`."""
        return {}


class FewShotHead(nn.Module, abc.ABC):
    """A head in its published form. Its keyword arguments are its tensors, kept as buffers, and its parameters.

    Attributes:
        name: on the command line and in the manifest.
        title: for people.
        with_views: whether `fit` needs the features of every augmented view.
        needs_text: whether it is undefined for classes that have no text.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    with_views: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def fit(cls, shots: Shots, progress: Progress) -> Fit:
        """Fit on the shots alone, hyper-parameters included.

        Raises:
            ShotsError: there are too few photos to choose anything on.
        """

    @abc.abstractmethod
    def forward(self, image: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
        """The formula as published: L2-normalised [B,D] and [K,D] -> what is added to the logits, [B,K]."""

    @abc.abstractmethod
    def fold(self, text: torch.Tensor, scale: float) -> FoldedHead:
        """The same with everything constant folded into the weights."""

    @classmethod
    @abc.abstractmethod
    def unfold(
        cls, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any], graph: Mapping[str, Any]
    ) -> "FewShotHead":
        """Take a head back out of a file.

        Args:
            weights: the folded module's parameters by name, as the file holds them.
            record: what the manifest says of the head; its parameters among it.
            graph: the manifest's `graph`, with what `describe` gave.
        """

    @abc.abstractmethod
    def parameters_by_name(self) -> dict[str, float]:
        """The numbers of the formula, for the manifest."""


def right_by_setting(shots: Shots, logits: Callable[[Shots, PhotoFeatures], Iterable[torch.Tensor]]) -> torch.Tensor:
    """Judge settings of a head on photos that it was not fitted on.

    Args:
        shots: the shots.
        logits: what to fit on, and photos -> with each setting in turn, the whole logits of these photos [N,K].

    Returns:
        bool [settings, photos judged]: which are right. Zero-shot, a setting like any other, is the caller's to add.
    """
    parts = [
        torch.stack([found.argmax(dim=1) == held.labels for found in logits(train, held)])
        for train, held in shots.splits()
    ]
    return torch.cat(parts, dim=1)


def held_out_by_folds(shots: Shots, fit: Callable[[Shots], FewShotHead]) -> Added:
    """`Fit.held_out` of a head that has no shortcut: fitted anew without each fold, when it is first asked."""
    found: list[torch.Tensor] = []

    def added(rows: torch.Tensor) -> torch.Tensor:
        if not found:
            photos = shots.photos
            logits = torch.empty(len(photos.labels), len(shots.text))
            for held in folds(photos.labels, photos.contents, shots.classes):
                head = fit(shots.without(held))
                logits[held] = head(photos.plain[held], shots.text, shots.scale)
            found.append(logits)
        return found[0][rows]

    return added
