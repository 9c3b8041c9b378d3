"""From answers to figures: shares with intervals, McNemar's test, and what is mistaken for what."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TOP = 5
_LEVEL = 0.95

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def accuracy(ranks: Sequence[int]) -> dict[str, Any]:
    """Top-1 and top-5 with Wilson's 95 % interval.

    Args:
        ranks: of each picture, how many classes stand before the right one.
    """
    places = np.asarray(ranks)
    return {f"top{top}": share(int((places < top).sum()), len(places)) for top in (1, TOP)}


def share(hits: int, count: int) -> dict[str, Any]:
    """Hits out of a count, with Wilson's score interval at 95 %."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(confidence_level=_LEVEL, method="wilson")
    return {"hits": hits, "share": hits / count, "interval_95": [float(interval.low), float(interval.high)]}


def mcnemar(first: Bool, second: Bool) -> dict[str, Any]:
    """McNemar's exact test: are two classifiers right equally often on the same pictures?

    Args:
        first: whether the first is right, per picture.
        second: whether the second is.

    Returns:
        How many pictures only one of them got right, and the two-sided probability of a split at least as
        uneven if both were equally good; 1 where they never differ.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


def per_class(truth: Int64, eager: Int64, deployed: Int64, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class that has pictures: how many, both sides' hits, and what the deployed side mistakes it for."""
    rows = []
    for index in np.unique(truth):
        own = truth == index
        answers = deployed[own]
        wrong, counts = np.unique(answers[answers != index], return_counts=True)
        mistaken = None
        if len(wrong):
            mistaken = {"label": labels[int(wrong[counts.argmax()])], "count": int(counts.max())}
        rows.append(
            {
                "label": labels[int(index)],
                "pictures": int(own.sum()),
                "eager": int((eager[own] == index).sum()),
                "deployed": int((answers == index).sum()),
                "mistaken_for": mistaken,
            }
        )
    return rows


def confusion(document: Mapping[str, Any]) -> Int64:
    """How many pictures of each class (row) the deployed side calls each class (column): [K,K]."""
    classes = len(document["labels"])
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (document["answers"]["truth"], document["answers"]["deployed"]["best"]), 1)
    return counts


def confusions(document: Mapping[str, Any], most: int) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: right class, answer, count."""
    counts = confusion(document)
    np.fill_diagonal(counts, 0)
    labels = document["labels"]
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(labels)) for place in order]
    return [(labels[row], labels[column], int(counts[row, column])) for row, column in pairs if counts[row, column]]
