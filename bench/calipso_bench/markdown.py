"""The results as Markdown tables, for the terminal and for a README; every number is derived from raw samples."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calipso_bench.cells import cpu_in_words
from calipso_bench.contenders import REFERENCE
from calipso_bench.stats import UNSTABLE_CV, ratio_interval, summary
from calipso_bench.work import FLOPS, achieved_gflops

Document = Mapping[str, Any]
_MIB = 1 << 20


def markdown(document: Document) -> str:
    """All tables of a results document."""
    parts = [_title(document), _contenders(document)]
    parts += [_cells(document, scenario) for scenario in ("latency", "throughput")]
    parts += [_processes(document), _loadgen(document), _warnings(document)]
    return "\n".join(part for part in parts if part)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table; the first `words` columns are text, the others numbers."""
    marks = ["---" if place < words else "---:" for place in range(len(columns))]
    lines = [columns, marks, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent_of_peak(document: Document, cell: Document, median_ms: float) -> float | None:
    """Achieved share of the measured fp32 matmul peak, of encoding and classifying cells; None where unknown."""
    work, peak = document["work"], document["machine"].get(str(cell["threads"]))
    if work is None or peak is None or cell["stage"] not in FLOPS or not peak["matmul_gflops"]:
        return None
    return achieved_gflops(work, cell, median_ms) / float(peak["matmul_gflops"])


def _title(document: Document) -> str:
    bundle, machine = document["bundle"], document["environment"]
    head = [f"{bundle['classes']} classes"]
    head += [f"{bundle['keys']} keys"] if bundle["tip_adapter"] else []
    head += ["CALIP"] if bundle["calip"] else []
    random = ", RANDOM weights" if bundle["weights"] == "random" else ""
    gpu = f", {machine['gpu']['name']}" if machine["gpu"] else ""
    unfinished = "" if document["finished"] else "\nThis run is not finished: cells are missing.\n"
    return (
        f"{bundle['model']}, {', '.join(head)}, {bundle['precision']}{random}; on {cpu_in_words(machine)}, "
        f"{machine['cores']} cores{gpu}. Pictures: {document['pictures']['source']}.\n{unfinished}"
    )


def _contenders(document: Document) -> str:
    rows = []
    for line in document["contenders"]:
        checked = document["verification"].get(line["name"])
        if not line["available"]:
            rows.append((line["name"], f"not run: {line['reason']}", "-", "-", "-"))
        elif checked is None:
            rows.append((line["name"], line["about"] or "", "-", "-", "-"))
        else:
            about = line["about"] if checked["passed"] else f"{line['about']}; NOT TIMED, {checked['failures'][0]}"
            errors = f"{checked['relative_logit_error']:.1e}", f"{checked['top1_agreement']:.2%}"
            rows.append((line["name"], about, *errors, setup(line)))
    if not rows:
        return ""
    against = sorted({checked["against"] for checked in document["verification"].values()})
    note = (
        f"Errors are against {' and '.join(against)}, on {document['pictures']['count']} pictures.\n" if against else ""
    )
    return table(("contender", "what", "logit error", "top-1 agreement", "ready in s"), rows, words=2) + note


def setup(line: Document) -> str:
    """Seconds until a contender was ready, for each number of threads."""
    return ", ".join(f"{seconds:.1f}" for seconds in line["setup_s"].values()) or "-"


def _cells(document: Document, scenario: str) -> str:
    cells = [cell for cell in document["cells"] if cell["scenario"] == scenario]
    if not cells:
        return ""
    columns = ["contender", "stage", "batch", "threads", *(["images/s"] if scenario == "throughput" else [])]
    columns += ["p50 ms", "p90", "p95", "p99", "cv", f"to {REFERENCE}", "95 % interval", "of peak"]
    columns += ["device ms"] if any(cell["device_ms"] for cell in cells) else []
    rows = [[row[column] for column in columns] for cell in cells for row in cell_rows(document, cell)]
    return f"{scenario}\n\n{table(columns, rows, words=2)}"


def cell_rows(document: Document, cell: Document) -> Iterator[dict[str, str]]:
    """What can be said of each contender in a cell, by column, the fastest first."""
    samples = cell["samples_ms"]
    # The measured peak is the CPU's.
    elsewhere = {line["name"] for line in document["contenders"] if line.get("device") not in (None, "cpu")}
    for name in sorted(samples, key=lambda name: statistics.median(samples[name])):
        found = summary(samples[name])
        share = percent_of_peak(document, cell, found.p50_ms) if name not in elsewhere else None
        device = (cell["device_ms"] or {}).get(name)
        ratio, interval = to_reference(samples, name)
        yield {
            "contender": name,
            **{key: str(cell[key]) for key in ("stage", "batch", "threads")},
            "images/s": f"{images_per_second(cell, name):.1f}",
            "p50 ms": f"{found.p50_ms:.4g}",
            "p90": f"{found.p90_ms:.4g}",
            "p95": f"{found.p95_ms:.4g}",
            "p99": f"{found.p99_ms:.4g}",
            "cv": f"{found.cv:.1%}{'!' if found.cv > UNSTABLE_CV else ''}",
            "n": str(found.count),
            f"to {REFERENCE}": ratio,
            "95 % interval": interval,
            "of peak": "-" if share is None else f"{share:.0%}",
            "device ms": f"{statistics.median(device):.4g}" if device else "-",
        }


def images_per_second(cell: Document, name: str) -> float:
    """The images of the timed batches over the time of the same batches."""
    samples = cell["samples_ms"][name]
    rate: float = cell["batch"] * len(samples) / (sum(samples) / 1e3)
    return rate


def to_reference(samples: Mapping[str, Sequence[float]], name: str) -> tuple[str, str]:
    """The ratio of a contender's median to the reference's, and its interval."""
    if REFERENCE not in samples:
        return "-", "-"
    ratio = ratio_interval(samples[name], samples[REFERENCE])
    return f"{ratio.ratio:.3f}", "-" if name == REFERENCE else f"{ratio.low:.3f} to {ratio.high:.3f}"


def _processes(document: Document) -> str:
    columns = ("contender", "threads", "import s", "load s", "first answer s", "steady ms", "peak MiB", "private MiB")
    rows = []
    for line in document["processes"]:
        samples = line["samples"]
        if not samples:
            continue
        seconds = [f"{median(samples, key):.3g}" for key in ("import_s", "load_s", "first_answer_s", "steady_ms")]
        sizes = [mib(samples, key) for key in ("peak_rss_bytes", "peak_private_bytes", "weights_bytes")]
        rows.append((line["contender"], str(line["threads"]), *seconds, *sizes))
    note = (
        "A new process for each sample, its files in the system's cache, and in the user's cache folder\n"
        "what a backend of the bundle kept there before; medians.\n\n"
    )
    return f"cold start and memory\n\n{note}{table((*columns, 'weights MiB'), rows)}" if rows else ""


def median(samples: Sequence[Document], key: str) -> float:
    """Over the processes of a contender."""
    return float(statistics.median(sample[key] for sample in samples))


def mib(samples: Sequence[Document], key: str) -> str:
    """The median of a size, where it is known."""
    values = [sample[key] for sample in samples if sample[key]]
    return f"{statistics.median(values) / _MIB:.0f}" if values else "-"


def _loadgen(document: Document) -> str:
    rows = []
    for line in document["loadgen"]:
        # The first is the one that the scenario is about.
        name, value = next(iter(line["result"].items()))
        equal = f"{line['accuracy']['top1_equal_to_direct']:.2%}"
        rows.append((line["scenario"], "valid" if line["valid"] else "INVALID", f"{name} {value:.5g}", equal))
    columns = ("scenario", "run", "result", "same answers as direct calls")
    return f"MLPerf LoadGen\n\n{table(columns, rows, words=3)}" if rows else ""


def _warnings(document: Document) -> str:
    unstable = sorted(
        {
            name
            for cell in document["cells"]
            for name, samples in cell["samples_ms"].items()
            if summary(samples).cv > UNSTABLE_CV
        }
    )
    if not unstable:
        return ""
    seconds = 2 * document["config"]["seconds"]
    return (
        f"unstable (coefficient of variation above {UNSTABLE_CV:.0%}, marked !): {', '.join(unstable)}. Measure again "
        f"with --seconds {seconds:g}, with fewer --threads, or pinned: taskset -c 0 calipso bench ...\n"
    )
