"""Roofline: how much of what this machine can do at most each contender reaches.

Source of the model: Williams, Waterman and Patterson, "Roofline", CACM 2009. The intensity counts the
least traffic there can be: the weights and the input, each read once per call.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullLocator

from calipso_bench.cells import threads_in_words
from calipso_bench.plots.style import Look, legend, panels, svg
from calipso_bench.work import FLOPS, achieved_gflops

_FLOAT_BYTES = 4
_PEAK_MARGIN = 1.35
_BATCH_MARGIN = 2.2


def roofline_figure(document: Mapping[str, Any], stage: str, looks: dict[str, Look], *, name: str, title: str) -> str:
    """One panel per number of threads.

    Args:
        document: with `work` and `machine`.
        stage: "encode" or "classify".
        looks: of the contenders.
        name: prefix of the figure's ids.
        title: of the figure.
    """
    cells = [cell for cell in document["cells"] if cell["scenario"] == "latency" and cell["stage"] == stage]
    threads = [count for count in dict.fromkeys(cell["threads"] for cell in cells) if str(count) in document["machine"]]
    figure, axes = panels(len(threads), height=3.6)
    shown: dict[str, None] = {}
    for axis, count in zip(axes, threads, strict=True):
        own = [cell for cell in cells if cell["threads"] == count]
        peaks = document["machine"][str(count)]
        points = [
            (
                contender,
                intensity_of(document, stage, cell["batch"]),
                achieved_gflops(document["work"], cell, float(np.median(values))),
            )
            for cell in own
            for contender, values in cell["samples_ms"].items()
        ]
        for contender, intensity, achieved in points:
            look = looks[contender]
            axis.plot(intensity, achieved, marker=look.marker, color=look.color, ms=7, ls="", alpha=0.85)
            shown[contender] = None
        for cell in own:
            intensity = intensity_of(document, stage, cell["batch"])
            axis.annotate(
                str(cell["batch"]),
                (intensity, 0.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                color="#555555",
            )
        axis.annotate("batch", (0.03, 0.02), xycoords="axes fraction", color="#555555")
        _roofs(axis, peaks, [intensity for _, intensity, _ in points], [achieved for *_, achieved in points])
        limits = f"{peaks['matmul_gflops']:.0f} GFLOP/s, {peaks['read_gb_s']:.0f} GB/s"
        axis.set_title(f"{threads_in_words(count)}: {limits}")
        axis.set_xlabel("FLOP per byte of weights and input")
    axes[0].set_ylabel("achieved GFLOP/s")
    legend(figure, looks, list(shown), line=False)
    return svg(figure, name, f"{title}: achieved GFLOP/s against arithmetic intensity, under this machine's roofs")


def intensity_of(document: Mapping[str, Any], stage: str, batch: int) -> float:
    """FLOP per byte of a call: its work over the weights and the input."""
    work = document["work"]
    traffic = work["weight_bytes"] + batch * _FLOAT_BYTES * float(np.prod(document["bundle"]["input"]))
    return float(work[FLOPS[stage]] * batch / traffic)


def _roofs(axis: Any, peaks: Mapping[str, Any], intensities: Sequence[float], achieved: Sequence[float]) -> None:
    peak, bandwidth = peaks["matmul_gflops"], peaks["read_gb_s"]
    ridge = peak / bandwidth
    left, right = min(ridge / 3, *intensities) / 1.5, max(intensities) * 2.5
    x = np.array([left, ridge, right])
    axis.plot(x, np.minimum(peak, bandwidth * x), color="#888888", lw=1.6)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    # Room for the numbers of the batches.
    bottom = min(*achieved, bandwidth * left) / _BATCH_MARGIN
    axis.set(xlim=(left, right), ylim=(bottom, max(peak, *achieved) * _PEAK_MARGIN))
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_locator(NullLocator())
