"""The confusion picture: what the pictures of each class are called."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from calipso_bench.accuracy.figures import confusion
from calipso_bench.plots.style import square, svg

# More classes than this are drawn without their names: the tables have them.
_MOST_NAMES = 45
_MOST_LETTERS = 24


def confusion_figure(document: Mapping[str, Any], *, name: str) -> str:
    """Rows are the right classes, columns the answers; only classes with pictures or answers are shown.

    Args:
        document: of kind "calipso-accuracy".
        name: prefix of the figure's ids.
    """
    counts = confusion(document)
    shown = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    counts = counts[np.ix_(shown, shown)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(shown) <= _MOST_NAMES
    figure, axis = square(len(shown) if named else 0)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=axis, shrink=0.7, label="share of the class's pictures")
    axis.grid(visible=False)
    axis.set(xlabel="answer of the deployed side", ylabel="right class")
    if named:
        names = [_short(document["labels"][index]) for index in shown]
        axis.set_xticks(range(len(shown)), names, rotation=90)
        axis.set_yticks(range(len(shown)), names)
    return svg(figure, name, "confusion matrix: share of each class's pictures by answered class")


def _short(label: str) -> str:
    return label if len(label) <= _MOST_LETTERS else f"{label[: _MOST_LETTERS - 1]}…"
