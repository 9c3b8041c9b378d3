"""Which plots a results document has something for, with what they show in words."""

from collections.abc import Mapping
from typing import Any

from calipso_bench import plots, web
from calipso_bench.cells import threads_in_words
from calipso_bench.contenders import REFERENCE
from calipso_bench.work import FLOPS

Document = Mapping[str, Any]
# The stage that stands for the whole classifier in the plots that show one stage, where it was measured.
_MAIN_STAGES = ("classify", "encode", "end-to-end")


def figures_of(document: Document) -> dict[str, list[str]]:
    """The page's figures by section; a section without anything to show has none."""
    names = {name for cell in document["cells"] for name in cell["samples_ms"]}
    looks = plots.looks(sorted(names | {process["contender"] for process in document["processes"]}))
    with plots.styled():
        return {
            "latency": _latency(document, looks),
            "throughput": _throughput(document, looks),
            "fidelity": _fidelity(document, looks),
            "roofline": _roofline(document, looks),
            "processes": _processes(document),
        }


def _cells(document: Document, scenario: str, **wanted: object) -> list[Document]:
    return [
        cell
        for cell in sorted(document["cells"], key=lambda cell: int(cell["batch"]))
        if cell["scenario"] == scenario and all(cell[name] == value for name, value in wanted.items())
    ]


def _threads(document: Document) -> list[int]:
    return list(dict.fromkeys(cell["threads"] for cell in document["cells"]))


def _latency(document: Document, looks: dict[str, plots.Look]) -> list[str]:
    found = []
    for stage in dict.fromkeys(cell["stage"] for cell in document["cells"]):
        for threads in _threads(document):
            cells = _cells(document, "latency", stage=stage, threads=threads)
            if cells:
                title = f"{stage}, {threads_in_words(threads)}"
                svg = plots.latency_figure(cells, looks, name=f"latency-{stage}-{threads}", title=title)
                caption = (
                    f"{title}: share of calls answered within a time; further left is faster, markers are medians."
                )
                found.append(web.figure(svg, caption))
    return found


def _throughput(document: Document, looks: dict[str, plots.Look]) -> list[str]:
    found = []
    for threads in _threads(document):
        cells = _cells(document, "throughput", threads=threads)
        if cells:
            title = threads_in_words(threads)
            svg = plots.throughput_figure(cells, looks, name=f"throughput-{threads}", title=title)
            found.append(web.figure(svg, f"{title}: images per second of back-to-back batches; higher is faster."))
    return found


def _fidelity(document: Document, looks: dict[str, plots.Look]) -> list[str]:
    found = []
    for threads in _threads(document):
        measured = [cell for cell in _cells(document, "latency", threads=threads) if REFERENCE in cell["samples_ms"]]
        stage = next((each for each in _MAIN_STAGES if any(cell["stage"] == each for cell in measured)), None)
        cells = [cell for cell in measured if cell["stage"] == stage]
        if cells:
            title = f"{stage}, {threads_in_words(threads)}"
            svg = plots.fidelity_figure(cells, document["verification"], looks, name=f"fidelity-{threads}", title=title)
            caption = (
                f"{title}: lower is faster, further left is closer to {REFERENCE}'s answers ({REFERENCE} itself stands "
                "at the left end). Bars are 95 % bootstrap intervals of the ratio of medians."
            )
            found.append(web.figure(svg, caption))
    return found


def _roofline(document: Document, looks: dict[str, plots.Look]) -> list[str]:
    if document["work"] is None:
        return []
    for stage in FLOPS:
        cells = [each for each in _cells(document, "latency", stage=stage) if _has_peak(document, each)]
        if cells:
            svg = plots.roofline_figure(document, stage, looks, name="roofline", title=stage)
            caption = (
                f"{stage}: medians, counted as eager PyTorch's work whatever a contender leaves out, under this "
                "machine's measured fp32 matmul peak and read bandwidth."
            )
            return [web.figure(svg, caption)]
    return []


def _has_peak(document: Document, cell: Document) -> bool:
    peaks = document["machine"].get(str(cell["threads"]))
    return bool(peaks and peaks["matmul_gflops"] and peaks["read_gb_s"])


def _processes(document: Document) -> list[str]:
    found = []
    for threads in dict.fromkeys(process["threads"] for process in document["processes"]):
        own = [each for each in document["processes"] if each["threads"] == threads and each["samples"]]
        if own:
            title = threads_in_words(threads)
            svg = plots.processes_figure(own, name=f"processes-{threads}", title=title)
            found.append(web.figure(svg, f"{title}: a new process for every sample, files in the system's cache."))
    return found
