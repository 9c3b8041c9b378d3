"""Chooses alpha, beta, b2 and b3 on the example photos, never on test data.

Alpha and beta by the runtime's search, which taught bundles use too (`calipso_runtime.head.search`): each photo is
classified, as it is, by a cache that holds every photo but itself. That is a held-out split of one, repeated for
every photo: with 16 shots the cache it judges is 15/16 of the one that ships, where a fixed split would judge a
smaller one on a quarter of the photos.

CALIP's grid is that of the released search, 200 x 200, b2 in [.001, 2) and b3 in [.001, .1), and grows where the best
lies on its upper edge. Of equally good settings the one nearest to the middle of them all is taken: the middle of a
plateau is the safest place on it. What does not beat the plain classifier on validation is left out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from calipso_export.fewshot.features import PhotoFeatures, single_classes
from calipso_export.progress import Progress, silent, track
from calipso_runtime.head import search as head_search

# Tip-Adapter's released grid up to 20 and 10, for heads that train: they try its settings after every epoch.
BETAS = torch.linspace(0.1, 20.0, 200)
ALPHAS = torch.linspace(0.1, 10.0, 20)
B2S = torch.linspace(0.001, 2.0, 201)[:-1]
B3S = torch.linspace(0.001, 0.1, 201)[:-1]
# How often a grid is doubled: b2 up to 16 and b3 up to 0.8. The published ones end at 6.08 and 0.18.
_MOST_GROWTHS = 3
# Above this much work the photos are sampled evenly: exponentials of the search for alpha and beta, sums of CALIP's.
_MOST_EXPONENTIALS = 2e10
_MOST_SUMS = 4e10
_LEAST_CLASSES = 2
_LEAVE_ONE_OUT, _VALIDATION = "leave-one-out on the shots", "validation photos"
_PRIOR = "a prior for one photo of each class"
# Validation photos at a time, times what each needs: bounds the memory at about 256 MB.
_CHUNK_VALUES = 1 << 26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What a search chose, and why.

    Attributes:
        values: the chosen parameters by name, or None where they do not pay.
        record: for the manifest: photos used, accuracy before and after.
        curve: the best validation accuracy along the first parameter, for the report.
    """

    values: dict[str, float] | None
    record: dict[str, Any]
    curve: list[dict[str, float]]


def search_tip_adapter(
    features: PhotoFeatures,
    base: torch.Tensor,
    progress: Progress,
    *,
    judged: PhotoFeatures | None = None,
) -> Choice:
    """Choose alpha and beta.

    Args:
        features: the encoded photos.
        base: float32 [N,K], logits without a cache of the photos that are judged.
        progress: told after each part of the photos.
        judged: validation photos; where None, each of the photos is judged by the cache of all others. Where no class
            has two photos, nothing can be held out, and a prior decides.
    """
    if len(torch.unique(features.labels)) < _LEAST_CLASSES:
        # Of one class there is nothing to tell apart.
        return _choice(dict(head_search.START), None, 0, [], [], method=_PRIOR)
    shown = features if judged is None else judged
    found = head_search.choose(
        head_search.Cache(
            keys=features.keys.numpy(), owners=features.labels.numpy(), pictures=features.contents.numpy()
        ),
        head_search.Photos(
            features=shown.plain.numpy(),
            truth=shown.labels.numpy(),
            base=base.numpy(),
            pictures=shown.contents.numpy(),
            are_keys=judged is None,
        ),
        most_exponentials=_MOST_EXPONENTIALS,
        told=lambda done, total: progress("searching alpha and beta", done, total),
    )
    best = {"alpha": found.alpha, "beta": found.beta}
    if not found.photos:
        return _choice(best, None, 0, [], [], method=_PRIOR)
    return _choice(
        best,
        (found.right_without / found.photos, found.right_with / found.photos),
        found.photos,
        list(found.at_edge),
        list(found.curve),
        method=_LEAVE_ONE_OUT if judged is None else _VALIDATION,
        kept=found.pays,
    )


def search_calip(
    features: PhotoFeatures,
    base: torch.Tensor,
    few_shot: Callable[[torch.Tensor], torch.Tensor] | None,
    progress: Progress,
) -> Choice:
    """Choose b2 and b3, with the few-shot head as it will be.

    Args:
        features: the encoded photos, with CALIP's terms.
        base: float32 [M,K], logits of the photos without a cache.
        few_shot: rows -> what that head, fitted without each of them, adds to their logits; None where there is none.
            Not asked where a class has one photo only: without it that head would know nothing of the class.
        progress: told after each b2.
    """
    photos = evenly(len(base), _MOST_SUMS / (base.shape[1] * len(B2S) * len(B3S)))
    logits = base[photos]
    if few_shot is not None and not single_classes(features.labels, features.contents, base.shape[1]):
        logits = logits + few_shot(photos)
    b2s, b3s = B2S, B3S
    judge = _CalipJudge(logits, features.calip[photos], features.labels[photos])
    for growth in range(_MOST_GROWTHS + 1):
        accuracy = judge.accuracy(b2s, b3s, progress if growth == 0 else silent)
        b2_at, b3_at = middle_of_best(accuracy)
        edges = [name for name, at, grid in (("b2", b2_at, b2s), ("b3", b3_at, b3s)) if at == len(grid) - 1]
        if not edges or growth == _MOST_GROWTHS:
            break
        b2s, b3s = (_doubled(b2s) if "b2" in edges else b2s), (_doubled(b3s) if "b3" in edges else b3s)
    # The lower ends are as good as none: what matters is whether more would be better.
    chosen = {"b2": round(float(b2s[b2_at]), 6), "b3": round(float(b3s[b3_at]), 6)}
    before, after = float((logits.argmax(dim=1) == judge.truth).double().mean()), float(accuracy[b2_at, b3_at])
    curve = [
        {"b2": round(float(b2), 6), "b3": round(float(b3s[best]), 6), "accuracy": float(row[best])}
        for b2, row, best in zip(b2s, accuracy, accuracy.argmax(dim=1), strict=True)
    ]
    return _choice(chosen, (before, after), len(photos), edges, curve, method=_LEAVE_ONE_OUT, kept=after > before)


@dataclasses.dataclass(frozen=True)
class _CalipJudge:
    """Logits [V,K] of photos without CALIP, its two terms [V,2,K], and their classes [V]."""

    logits: torch.Tensor
    terms: torch.Tensor
    truth: torch.Tensor

    def accuracy(self, b2s: torch.Tensor, b3s: torch.Tensor, progress: Progress) -> torch.Tensor:
        """Share of the photos that is right with each b2 and b3, float64 [b2s,b3s]."""
        through_image, through_text = self.terms.unbind(dim=1)
        accuracy = torch.zeros(len(b2s), len(b3s), dtype=torch.float64)
        chunk = max(1, _CHUNK_VALUES // (self.logits.numel() or 1))
        for row, b2 in enumerate(track(b2s.tolist(), "searching b2 and b3", progress)):
            fixed = self.logits + b2 * through_image
            for start in range(0, len(b3s), chunk):
                b3 = b3s[start : start + chunk, None, None]
                right = (fixed + b3 * through_text).argmax(dim=2) == self.truth
                accuracy[row, start : start + chunk] = right.double().mean(dim=1)
        return accuracy


def _doubled(values: torch.Tensor) -> torch.Tensor:
    """The same number of values, twice as far apart, from the same first."""
    return values[0] + 2 * (values - values[0])


def leave_one_out(features: PhotoFeatures, photos: torch.Tensor, beta: float, classes: int) -> torch.Tensor:
    """float32 [V,K]: what a cache of all other photos says of each photo, before alpha.

    A copy of the same file is its own key too: held out in name only, it would vouch for itself. What is left of a
    photo's class counts as much more as was taken out, so that the class is not at a disadvantage.
    """
    size = max(1, _CHUNK_VALUES // len(features.keys))
    counts = torch.bincount(features.labels, minlength=classes)
    parts = []
    for rows in torch.split(photos, size):
        own = features.contents[rows, None] == features.contents[None, :]
        affinity = (features.plain[rows] @ features.keys.T).masked_fill(own, -torch.inf)
        part = cache_logits(affinity, features.labels, beta, classes)
        truth = features.labels[rows]
        held = (own & (features.labels[None, :] == truth[:, None])).sum(dim=1)
        part[torch.arange(len(rows)), truth] *= counts[truth] / (counts[truth] - held).clamp(min=1)
        parts.append(part)
    return torch.cat(parts)


def cache_logits(affinity: torch.Tensor, labels: torch.Tensor, beta: float, classes: int) -> torch.Tensor:
    """`exp(-beta (1 - affinity)) values` [V,K], in chunks of photos."""
    summed = affinity.new_zeros(len(affinity), classes)
    size = max(1, _CHUNK_VALUES // affinity.shape[1])
    for start in range(0, len(affinity), size):
        part = affinity[start : start + size]
        summed[start : start + size].index_add_(1, labels, (beta * (part - 1)).exp())
    return summed


def evenly(photos: int, most: float) -> torch.Tensor:
    """Indices of the photos to judge on: all, or evenly spaced ones (they are sorted by class)."""
    wanted = min(photos, max(1, int(most)))
    return torch.arange(wanted) * photos // wanted


def middle_of_best(accuracy: torch.Tensor) -> tuple[int, int]:
    """Row and column of the best value; of several the one nearest to the middle of them all."""
    best = (accuracy == accuracy.max()).nonzero().double()
    # Rows and columns are of different lengths: distances are in shares of the grid.
    scaled = best / torch.tensor(accuracy.shape, dtype=torch.float64)
    nearest = (scaled - scaled.mean(dim=0)).square().sum(dim=1).argmin()
    row, column = best[nearest].long().tolist()
    return row, column


def _choice(
    chosen: dict[str, float],
    accuracy: tuple[float, float] | None,
    photos: int,
    at_edge: list[str],
    curve: list[dict[str, float]],
    *,
    method: str,
    kept: bool = True,
) -> Choice:
    judged = {} if accuracy is None else {"accuracy_without": accuracy[0], "accuracy_with": accuracy[1]}
    record = {
        "method": method,
        "photos": photos,
        **judged,
        "best": chosen,
        "at_edge": at_edge,
        "kept": kept,
    }
    return Choice(values=chosen if kept else None, record=record, curve=curve)
