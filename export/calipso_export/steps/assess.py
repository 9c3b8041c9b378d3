"""Assess: how far the classifier's answers can be trusted, as far as the example photos can tell.

The temperature and the calibration error are measured on each photo by a few-shot head that was fitted without it.
For the false-accept curve whole classes are held out: a head is fitted without them, with the same settings, and their
photos are then what a product meets as pictures of no known class. Test data is never looked at.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from calipso_export.config import ExportConfig
from calipso_export.fewshot.features import single_classes
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.few_shot import Fit, Shots
from calipso_export.progress import Progress, silent, track
from calipso_export.reference import HeadTensors
from calipso_export.step import Made
from calipso_export.steps.tune import HeadRecord
from calipso_runtime.confidence import (
    BINS,
    Confidence,
    calibration_error,
    false_accept_curve,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    threshold_for,
)
from calipso_runtime.errors import CalipsoWarning, ShotsError

# Heads fitted without some classes: with more classes than this, several are held out together.
_MOST_HELD_OUT = 20
# With one class left every probability is 1.
_FEWEST_CLASSES = 3
_HELD_OUT = "photos that the head was not fitted on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assessed:
    """What the manifest says of the probabilities; see docs/bundle.md."""

    document: dict[str, Any]


class Assess:
    """Fit the temperature and, where a share of false accepts is asked for, the threshold below which is unknown."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, Shots, HeadTensors, HeadRecord)
    ensures: ClassVar[tuple[type, ...]] = (Assessed,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        heads, asked = made[HeadTensors], made[ExportConfig].unknown_at
        document, curves = assess(
            made[Shots],
            made[Fit] if heads.few_shot is not None else None,
            heads.calip,
            has_layers=heads.layers is not None,
            unknown_at=asked,
            progress=progress,
        )
        made[HeadRecord].curves.update(curves)
        made.add(dataclasses.replace(heads, temperature=document["temperature"]))
        made.add(Assessed(document=document))


def assess(
    shots: Shots,
    fit: Fit | None,
    calip: CalipParameters | None,
    *,
    has_layers: bool = False,
    unknown_at: float | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Any], dict[str, list[dict[str, float]]]]:
    """Measure a classifier on its own shots.

    Args:
        shots: what it was fitted on.
        fit: its few-shot head, or None.
        calip: its CALIP weights, or None.
        has_layers: whether layers were learned for CALIP, so that its terms are those of photos held out.
        unknown_at: share of pictures of unknown classes that may be taken for known ones; None for no threshold.
        progress: told after each group of classes that is held out.

    Returns:
        What the manifest says, and the curves for the report.

    Raises:
        ShotsError: a threshold is asked for, and the photos do not suffice for one.
    """
    reason = _why_not(shots, fit, calip)
    if reason is not None:
        if unknown_at is not None:
            message = f"no threshold for unknown pictures can be chosen: {reason}. Give more with --shots"
            raise ShotsError(message)
        return {"temperature": 1.0, "reason": reason}, {}
    truth = shots.photos.labels.numpy()
    rows = torch.arange(len(truth))
    added = None if fit is None else fit.held_out(rows)
    logits = _logits(shots, added, calip)
    found = fit_temperature(logits, truth)
    confidence = Confidence(temperature=1.0 if found is None else found)
    document: dict[str, Any] = {"temperature": confidence.temperature}
    if found is None:
        document["reason"] = "no temperature is best: the photos are all right, or the logits tell nothing of them"
    bins = [reliability(each.probabilities(logits), truth) for each in (Confidence(), confidence)]
    losses = [
        negative_log_likelihood(logits, truth, temperature=each)
        for each in (Confidence().temperature, confidence.temperature)
    ]
    document |= {
        "photos": len(truth),
        "method": _HELD_OUT
        if fit is not None or has_layers
        else "the shots: nothing was fitted on them but CALIP's weights",
        "nll": {"before": losses[0], "after": losses[1]},
        "ece": {
            "before": calibration_error(bins[0]),
            "after": calibration_error(bins[1]),
            "bins": min(BINS, len(truth)),
            "binning": "equal mass",
        },
    }
    curves = {"reliability": bins[1]}
    if unknown_at is not None:
        known = confidence.probabilities(logits).max(axis=1)
        unknown = np.concatenate(list(_best_of_strangers(shots, fit, calip, confidence, progress)))
        document["unknown"] = _threshold(known, unknown, unknown_at, groups=len(_groups(len(shots.classes))))
        curves["unknown"] = false_accept_curve(known, unknown)
    return document, curves


def _why_not(shots: Shots, fit: Fit | None, calip: CalipParameters | None) -> str | None:
    photos = shots.photos
    if len(photos.labels) == 0:
        return "no example photos were given"
    if calip is not None and photos.calip.shape[1] == 0:
        return "of ready keys it is not known what CALIP adds to their photos' logits"
    if fit is not None:
        single = single_classes(photos.labels, photos.contents, len(shots.classes))
        if single:
            names = ", ".join(repr(shots.classes[index]) for index in single)
            return f"one photo only of {names}, which leaves nothing to fit on where it is held out"
    return None


def _logits(shots: Shots, added: torch.Tensor | None, calip: CalipParameters | None) -> npt.NDArray[np.float64]:
    """Logits of all photos, with what the few-shot head adds to them."""
    logits = shots.zero_shot(shots.photos)
    if added is not None:
        logits = logits + added
    if calip is not None:
        weights = torch.tensor([calip.b2, calip.b3])[:, None]
        logits = logits + (weights * shots.photos.calip).sum(dim=1)
    return logits.double().numpy()


def _groups(classes: int) -> list[torch.Tensor]:
    """Classes that are held out together: each alone, while there are few."""
    if classes < _FEWEST_CLASSES:
        message = (
            f"no threshold for unknown pictures can be chosen with {classes} classes: holding one out leaves "
            f"fewer than 2. Leave out --unknown-at, or name at least {_FEWEST_CLASSES} classes"
        )
        raise ShotsError(message)
    count = min(classes, _MOST_HELD_OUT)
    return [torch.arange(start, classes, count) for start in range(count)]


def _best_of_strangers(
    shots: Shots, fit: Fit | None, calip: CalipParameters | None, confidence: Confidence, progress: Progress
) -> Iterator[npt.NDArray[np.float64]]:
    """Best probability of every photo, by a classifier that does not know its class; a group at a time."""
    for held in track(_groups(len(shots.classes)), "holding classes out", progress):
        known, strangers = shots.without_classes(held)
        added = None if fit is None else fit.refit(known)(strangers.photos.plain, known.text, known.scale)
        yield confidence.probabilities(_logits(strangers, added, calip)).max(axis=1)


def _threshold(
    known: npt.NDArray[np.float64], unknown: npt.NDArray[np.float64], asked: float, *, groups: int
) -> dict[str, Any]:
    threshold = threshold_for(unknown, asked)
    if threshold is None:
        certain = int((unknown >= 1).sum())
        message = (
            f"no threshold keeps false accepts to {asked:g}: {certain} of {len(unknown)} photos of classes that were "
            "held out are told as another class with a probability of 1. Give a higher --unknown-at, or more classes"
        )
        raise ShotsError(message)
    if asked * len(unknown) < 1:
        message = (
            f"a false-accept share of {asked:g} was asked for, and {len(unknown)} photos tell shares down to "
            f"{1 / len(unknown):.2g} only: the threshold is above all of them, and may still accept more than that"
        )
        warnings.warn(message, CalipsoWarning, stacklevel=2)
    return {
        "threshold": threshold,
        "asked": asked,
        "false_accept": float(np.mean(unknown >= threshold)),
        "false_reject": float(np.mean(known < threshold)),
        "photos": len(unknown),
        "groups": groups,
    }
