"""Throughput: images per second against the batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import NullLocator

from calipso_bench.markdown import images_per_second
from calipso_bench.plots.style import Look, legend, panels, svg


def throughput_figure(cells: Sequence[Mapping[str, Any]], looks: dict[str, Look], *, name: str, title: str) -> str:
    """One panel per stage, one line per contender.

    Args:
        cells: of one number of threads.
        looks: of the contenders.
        name: prefix of the figure's ids.
        title: of the figure.
    """
    stages = list(dict.fromkeys(cell["stage"] for cell in cells))
    figure, axes = panels(len(stages))
    shown: dict[str, None] = {}
    for axis, stage in zip(axes, stages, strict=True):
        own = sorted((cell for cell in cells if cell["stage"] == stage), key=lambda cell: int(cell["batch"]))
        for contender in dict.fromkeys(contender for cell in own for contender in cell["samples_ms"]):
            measured = [cell for cell in own if contender in cell["samples_ms"]]
            look = looks[contender]
            axis.plot(
                [cell["batch"] for cell in measured],
                [images_per_second(cell, contender) for cell in measured],
                color=look.color,
                marker=look.marker,
                lw=look.linewidth,
                ls=look.linestyle,
            )
            shown[contender] = None
        batches = [cell["batch"] for cell in own]
        axis.set_xscale("log", base=2)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(bottom=0)
        axis.set(title=stage, xlabel="batch")
        axis.margins(x=0.15)
    axes[0].set_ylabel("images per second")
    legend(figure, looks, list(shown))
    return svg(figure, name, f"{title}: images per second against the batch, by contender and stage")
