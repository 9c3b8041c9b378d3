"""Chooses a few-shot head by cross-validation on the shots alone: `--head auto`.

Every candidate is fitted on the same folds, its own hyper-parameters included, and judged on the photos that were left
out, as they are: so the candidates, zero-shot among them, can be compared in pairs. The best is then fitted on all.
Of equals the first of the table is taken, and zero-shot before all: nothing is added that does not pay. Where a class
has one photo only, nothing can be compared: then it is the first, with its usual settings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from calipso_export.fewshot.features import PhotoFeatures, single_classes
from calipso_export.heads import FEW_SHOT, few_shot_class
from calipso_export.heads.few_shot import FewShotHead, Fit, Shots
from calipso_export.progress import Progress
from calipso_runtime.accuracy import bootstrap, mcnemar, share_right
from calipso_runtime.errors import ShotsError

ZERO_SHOT = "zero-shot"
_SINGLE = "a class has one photo only, so that no heads can be compared"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """What came of it.

    Attributes:
        name: the best head, though zero-shot may be no worse.
        fit: of that head on all shots; None where zero-shot is no worse.
        record: for the manifest: how it was chosen.
        candidates: what the report lists: of each its accuracy, and how it compares with zero-shot.
    """

    name: str
    fit: Fit | None
    record: dict[str, Any]
    candidates: list[dict[str, Any]]


def choose_head(shots: Shots, progress: Progress, heads: Mapping[str, str] = FEW_SHOT) -> Chosen:
    """Try all heads.

    Args:
        shots: the shots.
        progress: told about every candidate.
        heads: their names, in the order in which equals are taken.

    Raises:
        ShotsError: none of them takes the photos.
    """
    if single_classes(shots.photos.labels, shots.photos.contents, len(shots.classes)):
        # Nothing can be held out, so nothing can be compared: the first head has settings for that.
        name = next(iter(heads))
        only = few_shot_class(name).fit(shots, progress)
        record = {**only.record, "method": f"{_SINGLE}: {only.record['method']}"}
        return Chosen(name=name, fit=only, record=record, candidates=[])
    classes = {name: few_shot_class(name) for name in heads}
    # Never on validation photos: those choose the hyper-parameters of a head, and would flatter it.
    splits = list(dataclasses.replace(shots, validation=None).splits())
    plain = torch.cat([shots.zero_shot(held).argmax(dim=1) == held.labels for _, held in splits])
    candidates: list[dict[str, Any]] = [{"name": ZERO_SHOT, "title": "zero-shot", **_accuracy(plain)}]
    right: dict[str, torch.Tensor] = {}
    refused = ""
    for name, head in classes.items():
        found = _cross_validate(head, splits, progress)
        about = {"name": name, "title": head.title}
        if isinstance(found, ShotsError):
            refused = str(found)
            candidates.append({**about, "left_out": refused})
        else:
            right[name] = found
            candidates.append({**about, **_accuracy(found), **_paired(found, plain)})
    if not right:
        message = f"no head can be fitted on these photos: {refused}"
        raise ShotsError(message)
    best = max(right, key=lambda name: int(right[name].sum()))
    record = {
        "method": f"cross-validation on the shots, {len(splits)} folds, {len(right)} heads",
        "photos": len(plain),
        "accuracy_without": float(plain.double().mean()),
        "accuracy_with": float(right[best].double().mean()),
        "at_edge": [],
        "kept": bool(right[best].sum() > plain.sum()),
    }
    fit = classes[best].fit(shots, progress) if record["kept"] else None
    return Chosen(name=best, fit=fit, record=record, candidates=candidates)


def _cross_validate(
    head: type[FewShotHead], splits: Sequence[tuple[Shots, PhotoFeatures]], progress: Progress
) -> torch.Tensor | ShotsError:
    """Bool [photos]: which the head gets right when it was fitted without them; or why it cannot be fitted."""
    parts = []
    try:
        for number, (train, held) in enumerate(splits, start=1):
            fitted = head.fit(train, _prefixed(progress, f"{head.title}, part {number} of {len(splits)}: ")).head
            logits = train.zero_shot(held)
            if fitted is not None:
                logits = logits + fitted(held.plain, train.text, train.scale)
            parts.append(logits.argmax(dim=1) == held.labels)
    except ShotsError as error:
        return error
    return torch.cat(parts)


def _prefixed(progress: Progress, prefix: str) -> Progress:
    def report(what: str, done: int, total: int) -> None:
        progress(prefix + what, done, total)

    return report


def _accuracy(right: torch.Tensor) -> dict[str, Any]:
    return share_right(int(right.sum()), len(right))


def _paired(right: torch.Tensor, plain: torch.Tensor) -> dict[str, Any]:
    """How much better than zero-shot, on the same photos."""
    own, other = right.numpy(), plain.numpy()
    return {
        "gain": float(own.mean() - other.mean()),
        "gain_interval_95": bootstrap(own, other),
        "mcnemar_p": mcnemar(int((own & ~other).sum()), int((~own & other).sum())),
    }
