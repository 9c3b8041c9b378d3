"""Cold start and memory: what a new process pays until its first answer."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from calipso_bench.contenders import is_bundle
from calipso_bench.markdown import median
from calipso_bench.plots.style import panels, svg

# Parts of the way to the first answer, in this order; the rest of the total is Python's own start and the answer.
_PARTS = (("import_s", "import", "#56b4e9"), ("load_s", "load", "#0072b2"))
_REST = ("start of Python and first answer", "#e69f00")
_MIB = 2**20
_ROW_INCHES = 0.42


def processes_figure(processes: Sequence[Mapping[str, Any]], *, name: str, title: str) -> str:
    """Two panels: medians of the seconds to the first answer, and of the peak memory.

    Args:
        processes: of one number of threads, none without samples.
        name: prefix of the figure's ids.
        title: of the figure.
    """
    ordered = sorted(processes, key=lambda each: -median(each["samples"], "total_s"))
    figure, (seconds, memory) = panels(2, height=0.9 + _ROW_INCHES * len(ordered))
    names = [each["contender"] for each in ordered]
    left = [0.0] * len(ordered)
    for key, label, color in _PARTS:
        widths = [median(each["samples"], key) for each in ordered]
        seconds.barh(names, widths, left=left, color=color, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    totals = [median(each["samples"], "total_s") for each in ordered]
    rests = [max(0.0, total - start) for total, start in zip(totals, left, strict=True)]
    bars = seconds.barh(names, rests, left=left, color=_REST[1], label=_REST[0])
    seconds.bar_label(bars, [f"{total:.2f}" for total in totals], padding=4)
    seconds.set(xlabel="s from the start of the process, medians", title="cold start")
    seconds.set_xlim(right=max(totals) * 1.15)
    peaks = [median(each["samples"], "peak_rss_bytes") / _MIB for each in ordered]
    colors = ["#0072b2" if is_bundle(each) else "#999999" for each in names]
    bars = memory.barh(names, peaks, color=colors)
    memory.bar_label(bars, [f"{peak:.0f}" for peak in peaks], padding=4)
    memory.set(xlabel="MiB, peak of the process", title="memory")
    memory.set_xlim(right=max(peaks) * 1.18)
    samples = [sample for each in ordered for sample in each["samples"]]
    weights = [sample["weights_bytes"] / _MIB for sample in samples if sample["weights_bytes"]]
    if weights:
        memory.axvline(statistics.median(weights), color="#b00020", lw=1, label="the weights alone")
        memory.legend(loc="upper right")
    for axis in (seconds, memory):
        axis.grid(visible=False, axis="y")
    handles, labels = seconds.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return svg(figure, name, f"{title}: seconds to the first answer of a new process, and its peak memory")
