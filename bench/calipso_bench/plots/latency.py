"""Latency: the share of calls that were answered within a time, each contender's whole distribution."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FuncFormatter

from calipso_bench.plots.style import Look, legend, panels, svg

Float64 = npt.NDArray[np.float64]
# The slowest calls would squeeze all others: the axis ends a little behind this share of every contender's.
_SHOWN = 99
_MARGIN = 1.05
# Beyond this ratio of the slowest to the fastest the axis is logarithmic.
_WIDE = 8
# Steps of a line: more of them than pixels only make the page larger.
_MOST_STEPS = 200


def latency_figure(cells: Sequence[Mapping[str, Any]], looks: dict[str, Look], *, name: str, title: str) -> str:
    """One panel per cell, cumulative distributions with the medians marked.

    Args:
        cells: of one stage and number of threads, by batch.
        looks: of the contenders.
        name: prefix of the figure's ids.
        title: of the figure.
    """
    figure, axes = panels(len(cells))
    shown: dict[str, None] = {}
    for axis, cell in zip(axes, cells, strict=True):
        samples: Mapping[str, Sequence[float]] = cell["samples_ms"]
        for contender, values in samples.items():
            look = looks[contender]
            times, shares = _distribution(values)
            axis.step(times, shares, where="post", color=look.color, lw=look.linewidth, ls=look.linestyle)
            axis.plot(np.median(values), 0.5, marker=look.marker, color=look.color, ms=6)
            shown[contender] = None
        low = min(min(values) for values in samples.values())
        high = max(float(np.percentile(values, _SHOWN)) for values in samples.values())
        axis.set(
            title=f"batch {cell['batch']}",
            xlabel="ms per call",
            xlim=(low / _MARGIN, high * _MARGIN),
            ylim=(0, 1.02),
        )
        if high > _WIDE * low:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axis.locator_params(axis="x", nbins=6)
    axes[0].set_ylabel("share of calls answered")
    legend(figure, looks, list(shown))
    return svg(figure, name, f"{title}: cumulative distribution of the time per call, by contender and batch")


def _distribution(values: Sequence[float]) -> tuple[Float64, Float64]:
    """Times, sorted, and the share of calls that took at most that."""
    ordered = np.sort(np.asarray(values, np.float64))
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    chosen = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_STEPS)).round().astype(np.int64))
    return ordered[chosen], shares[chosen]
