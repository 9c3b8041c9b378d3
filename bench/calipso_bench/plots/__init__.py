"""The report's plots, one file each: from a results document to an SVG element that stands inside a page."""

from calipso_bench.plots.fidelity import fidelity_figure
from calipso_bench.plots.latency import latency_figure
from calipso_bench.plots.processes import processes_figure
from calipso_bench.plots.roofline import roofline_figure
from calipso_bench.plots.style import Look, looks, styled
from calipso_bench.plots.throughput import throughput_figure

__all__ = [
    "Look",
    "fidelity_figure",
    "latency_figure",
    "looks",
    "processes_figure",
    "roofline_figure",
    "styled",
    "throughput_figure",
]
