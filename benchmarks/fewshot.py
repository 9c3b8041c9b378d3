"""Measures the search for alpha and beta on real CLIP features, beside Tip-Adapter's own settings and search.

    python -m benchmarks.fewshot CALTECH [--caches CACHES]

CALTECH is the folder with `clip_vit_b32_features.npz` (see benchmarks.heads). CACHES is a folder of feature caches as
Tip-Adapter's released code writes them, one folder a data set: `val_f.pt`, `val_l.pt`, `test_f.pt`, `test_l.pt`, and
`keys_16shots.pt` with `values_16shots.pt`. No such cache holds text features, so there a text is drawn: the mean of a
class's training photos, blended with those of other classes until zero-shot is right as often as published, and with
directions that no photo has. Where the keys are another model's, a third of the test photos makes the text instead.

Shots are drawn from `val`, as they are, in five draws. Half of `test` is what the released search chooses on, the other
half is asked once. Minutes. Writes benchmarks/results/fewshot.json.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import RESULTS, keep
from benchmarks.heads import FEATURES, SCALE
from calipso_bench.environment import commit, environment
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.search import cache_logits
from calipso_export.heads.few_shot import Shots
from calipso_export.heads.tip_adapter import TipAdapter
from calipso_export.progress import silent
from calipso_runtime.accuracy import bootstrap

SHOTS, DRAWS = (1, 2, 4, 8, 16), 5
RESULT = RESULTS / "fewshot.json"
WAYS = ("zero-shot", "published defaults", "released search on validation photos", "Calipso, on the shots")
# Bounds of beta and alpha, and where the released code starts (its configurations); 200 x 20 steps from 0.1 (main.py).
RELEASED = {
    "caltech101": (12, 5, 1, 3),
    "dtd": (13, 13, 1, 2),
    "fgvc": (30, 30, 1, 5),
    "oxford_flowers": (50, 50, 1, 10),
    "oxford_pets": (7, 3, 1, 1.17),
    "ucf101": (7, 3, 1, 3),
}
# Zero-shot of RN50 as CALIP's paper has it: what the drawn texts are made to reach, where they can.
PUBLISHED_ZERO_SHOT = {
    "dtd": 0.4232,
    "fgvc": 0.1728,
    "oxford_flowers": 0.6614,
    "oxford_pets": 0.8577,
    "ucf101": 0.6146,
}
# How a real text lies, seen on Caltech's: far from the photos, and less than half of it in the space that they fill.
_SHARED, _OWN, _SHARE, _GAP, _PHOTO_SPACE = 0.45, 0.9, 0.55, 0.83, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """L2-normalised features float32 [N,D] and labels int64 [N] of each split, and the text float32 [K,D]."""

    name: str
    pool: torch.Tensor
    pool_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    text: torch.Tensor


def caltech(folder: Path) -> Features:
    """The 35 classes that have a real text."""
    with np.load(folder / FEATURES) as archive:
        arrays = dict(archive)
    known = arrays["text_class_ids"]

    def part(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        labels = arrays[f"{name}_labels"]
        own = np.isin(labels, known)
        values = torch.from_numpy(arrays[f"{name}_features"][own].astype(np.float32))
        places = [int(np.flatnonzero(known == label)[0]) for label in labels[own]]
        return functional.normalize(values, dim=1), torch.tensor(places)

    (pool, pool_labels), (test, test_labels) = part("val"), part("test")
    text = functional.normalize(torch.from_numpy(arrays["text_features"]), dim=1)
    return Features(
        name="caltech101", pool=pool, pool_labels=pool_labels, test=test, test_labels=test_labels, text=text
    )


def cached(folder: Path, name: str) -> Features:
    """A cache of Tip-Adapter's released code, with a text that is drawn."""
    arrays = {path.stem: torch.load(path, map_location="cpu", weights_only=True) for path in folder.glob("*.pt")}
    pool, test = (functional.normalize(arrays[f"{split}_f"].float(), dim=1) for split in ("val", "test"))
    pool_labels, test_labels = arrays["val_l"].long(), arrays["test_l"].long()
    keys, classes = arrays["keys_16shots"].T.float(), int(test_labels.max()) + 1
    if keys.shape[1] == pool.shape[1]:
        means = _means(functional.normalize(keys, dim=1), arrays["values_16shots"].argmax(dim=1), classes)
    else:
        third = torch.cat([(test_labels == label).nonzero().flatten()[::3] for label in range(classes)])
        means = _means(test[third], test_labels[third], classes)
        kept = torch.ones(len(test), dtype=torch.bool)
        kept[third] = False
        test, test_labels = test[kept], test_labels[kept]
    text = drawn_text(means, pool, pool_labels, PUBLISHED_ZERO_SHOT[name])
    return Features(name=name, pool=pool, pool_labels=pool_labels, test=test, test_labels=test_labels, text=text)


def drawn_text(means: torch.Tensor, photos: torch.Tensor, labels: torch.Tensor, wanted: float) -> torch.Tensor:
    """A text per class with which zero-shot is right on so large a share of the photos, or as near as it gets."""
    generator = torch.Generator().manual_seed(0)
    apart = means - means.mean(dim=0)
    classes, width = apart.shape
    confused = torch.randn(classes, classes, generator=generator) @ apart / classes**0.5
    own = torch.randn(classes, width, generator=generator)
    gap = functional.normalize(torch.randn(width, generator=generator), dim=0)
    middle = functional.normalize(means.mean(dim=0), dim=0)
    gap = functional.normalize(0.25 * middle + 0.97 * functional.normalize(gap - (gap @ middle) * middle, dim=0), dim=0)
    seen = torch.linalg.svd(photos, full_matrices=True)[2][:_PHOTO_SPACE]
    own, gap = own - (own @ seen.T) @ seen, gap - (gap @ seen.T) @ seen

    def text(share: float) -> torch.Tensor:
        told = functional.normalize(functional.normalize(apart, dim=1) + share * functional.normalize(confused, dim=1))
        mixed = functional.normalize(_SHARED * told + _OWN * functional.normalize(own, dim=1), dim=1)
        return functional.normalize(_GAP * gap + _SHARE * mixed, dim=1)

    low, high = 0.0, 20.0
    for _ in range(30):
        middle_share = (low + high) / 2
        right = float((photos @ text(middle_share).T).argmax(dim=1).eq(labels).double().mean())
        low, high = (middle_share, high) if right > wanted else (low, middle_share)
    return text(low)


def measured(features: Features) -> Iterator[dict[str, Any]]:
    """One line per number of shots, over all draws."""
    first, second = _halves(features.test_labels)
    for count in SHOTS:
        right: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        for draw in range(DRAWS):
            for way, found in _one(features, count, draw, first, second).items():
                right[way].append(found)
        joined = {way: np.concatenate(found) for way, found in right.items()}
        own = joined[WAYS[-1]]
        yield {
            "set": features.name,
            "shots": count,
            "draws": DRAWS,
            "pictures": len(second),
            "top1": {way: float(found.mean()) for way, found in joined.items()},
            "top1_by_draw": {way: [float(each.mean()) for each in found] for way, found in right.items()},
            "over": {
                way: {"gain": float(own.mean() - joined[way].mean()), "interval_95": bootstrap(own, joined[way])}
                for way in WAYS[:-1]
            },
        }


def _one(features: Features, count: int, draw: int, first: torch.Tensor, second: torch.Tensor) -> dict[str, np.ndarray]:
    """By way, which test photos are right with one draw of the shots."""
    rows = _drawn(features.pool_labels, count, draw)
    keys, labels, classes = features.pool[rows], features.pool_labels[rows], len(features.text)
    photos = PhotoFeatures(
        labels=labels, contents=torch.arange(len(rows)), keys=keys, plain=keys, calip=torch.empty(len(rows), 0, classes)
    )
    names = tuple(map(str, range(classes)))
    fit = TipAdapter.fit(Shots(photos=photos, text=features.text, scale=SCALE, bias=0.0, classes=names), silent)
    chosen = fit.record["best"] if fit.head is not None else {"alpha": 0.0, "beta": 1.0}
    beta_bound, alpha_bound, beta, alpha = RELEASED[features.name]
    searched = _released_search(features, keys, labels, first, (beta_bound, alpha_bound))

    def right(alpha: float, beta: float) -> np.ndarray:
        asked = features.test[second]
        logits = SCALE * asked @ features.text.T + alpha * cache_logits(asked @ keys.T, labels, beta, classes)
        return (logits.argmax(dim=1) == features.test_labels[second]).numpy()

    settings = ((0.0, 1.0), (alpha, beta), searched, (chosen["alpha"], chosen["beta"]))
    return {way: right(*values) for way, values in zip(WAYS, settings, strict=True)}


def _released_search(
    features: Features, keys: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Alpha and beta by the released loops: 200 x 20 steps, the first of the best, on half of the test photos."""
    asked, truth = features.test[rows], features.test_labels[rows]
    base, affinity = SCALE * asked @ features.text.T, asked @ keys.T
    best, found = -1, (0.0, 1.0)
    for step in range(200):
        beta = step * (bounds[0] - 0.1) / 200 + 0.1
        once = cache_logits(affinity, labels, beta, len(features.text))
        for other in range(20):
            alpha = other * (bounds[1] - 0.1) / 20 + 0.1
            right = int(((base + alpha * once).argmax(dim=1) == truth).sum())
            if right > best:
                best, found = right, (alpha, beta)
    return found


def _means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.stack([features[labels == label].mean(dim=0) for label in range(classes)])


def _halves(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every second photo of each class, and the others."""
    first = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        first[(labels == label).nonzero().flatten()[::2]] = True
    return first.nonzero().flatten(), (~first).nonzero().flatten()


def _drawn(labels: torch.Tensor, count: int, draw: int) -> torch.Tensor:
    """So many photos of each class, or all that there are."""
    generator = torch.Generator().manual_seed(draw)
    rows = []
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero().flatten()
        rows.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return torch.cat(rows)


def main() -> int:
    """Measure all sets that are there, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("caltech", type=Path)
    parser.add_argument("--caches", type=Path)
    arguments = parser.parse_args()
    caches = sorted(arguments.caches.iterdir()) if arguments.caches else []
    known = [folder for folder in caches if folder.name in PUBLISHED_ZERO_SHOT]
    document: dict[str, Any] = {
        "schema_version": 1,
        "what": "top-1 of Tip-Adapter on real ViT-B/32 features, by how alpha and beta are chosen",
        "commit": commit(),
        "environment": environment(),
        "rows": [],
    }
    for features in [caltech(arguments.caltech), *(cached(folder, folder.name) for folder in known)]:
        for row in measured(features):
            document["rows"].append(row)
            keep(RESULT, document, indent=1)
            print(json.dumps({key: row[key] for key in ("set", "shots", "top1")}), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
