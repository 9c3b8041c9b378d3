"""Fits a head whose parameters come from a grid: each point of it is judged on photos that it was not fitted on.

Of equally good points the one nearest to the middle of them all is taken, as in `fewshot.search`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from calipso_export.fewshot.features import PhotoFeatures, single_classes
from calipso_export.heads.few_shot import FewShotHead, Fit, Shots, held_out_by_folds, right_by_setting
from calipso_export.progress import Progress

Grid = Mapping[str, Sequence[float]]
# How a head was fitted where nothing could be held out.
SINGLE = "usual settings: a class has one photo only"


def fit_on_grid(
    shots: Shots,
    grid: Grid,
    added: Callable[[Shots, torch.Tensor], Iterable[torch.Tensor]],
    make: Callable[..., FewShotHead],
    progress: Progress,
    *,
    single: Mapping[str, float] | None = None,
) -> Fit:
    """Choose one value of each parameter, and fit the head with them.

    Args:
        shots: the shots.
        grid: the values to try of each parameter, by name.
        added: what to fit on, and features [N,D] -> what the head adds to their logits [N,K], at each point of the
            grid in turn; the last parameter runs fastest.
        make: shots, and the parameters by name -> the head.
        progress: told after each point.
        single: values where a class has one photo only, so that nothing can be held out; None refuses that.

    Raises:
        ShotsError: a class has one photo only, there are no validation photos, and no `single`.
    """
    alone = single_classes(shots.photos.labels, shots.photos.contents, len(shots.text))
    if single is not None and shots.validation is None and alone:
        usual = {"method": SINGLE, "photos": 0, "best": dict(single), "at_edge": [], "kept": True}
        at_single = partial(make, **single)
        held = held_out_by_folds(shots, at_single)
        return Fit(head=at_single(shots), record=usual, curve=[], held_out=held, refit=at_single)
    shape = tuple(map(len, grid.values()))
    total = torch.Size(shape).numel() * sum(1 for _ in shots.splits())
    done = itertools.count(1)

    def logits(train: Shots, held: PhotoFeatures) -> Iterator[torch.Tensor]:
        base = shots.zero_shot(held)
        yield base
        for each in added(train, held.plain):
            yield base + each
            progress(f"searching {', '.join(grid)}", next(done), total)

    right = right_by_setting(shots, logits).double().mean(dim=1)
    without, accuracy = float(right[0]), right[1:].reshape(shape)
    place = _middle_of_best(accuracy)
    best = {name: values[at] for (name, values), at in zip(grid.items(), place, strict=True)}
    record: dict[str, Any] = {
        "method": "cross-validation on the shots" if shots.validation is None else "validation photos",
        "photos": len((shots.validation or shots.photos).labels),
        "accuracy_without": without,
        "accuracy_with": float(accuracy[place]),
        "best": best,
        "at_edge": [name for at, (name, values) in zip(place, grid.items(), strict=True) if at in (0, len(values) - 1)],
        "kept": float(accuracy[place]) > without,
    }

    def at_best(own: Shots) -> FewShotHead:
        return make(own, **best)

    return Fit(
        head=at_best(shots) if record["kept"] else None,
        record=record,
        curve=_curve(grid, accuracy),
        held_out=held_out_by_folds(shots, at_best),
        refit=at_best,
    )


def spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """Values at equal ratios, rounded to three digits so that a manifest can be read."""
    return tuple(float(f"{low * (high / low) ** (place / (count - 1)):.3g}") for place in range(count))


def _middle_of_best(accuracy: torch.Tensor) -> tuple[int, ...]:
    best = (accuracy == accuracy.max()).nonzero().double()
    scaled = best / torch.tensor(accuracy.shape, dtype=torch.float64)
    nearest = (scaled - scaled.mean(dim=0)).square().sum(dim=1).argmin()
    return tuple(best[nearest].long().tolist())


def _curve(grid: Grid, accuracy: torch.Tensor) -> list[dict[str, float]]:
    """The best accuracy at each value of the first parameter."""
    (name, values), *_ = grid.items()
    return [
        {name: value, "accuracy": float(row.max())}
        for value, row in zip(values, accuracy.reshape(len(values), -1), strict=True)
    ]
