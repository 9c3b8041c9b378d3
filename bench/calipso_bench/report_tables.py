"""The report's larger tables: the cells of latency and throughput, and the processes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calipso_bench import web
from calipso_bench.contenders import REFERENCE, is_bundle
from calipso_bench.markdown import cell_rows, median, mib, to_reference
from calipso_bench.stats import ratio_interval, summary

Document = Mapping[str, Any]


def in_short(document: Document) -> str:
    """Per cell of latency the bundle's fastest backend, against eager and against the fastest rival."""
    rows = []
    for cell in document["cells"]:
        samples = cell["samples_ms"]
        own = sorted(filter(is_bundle, samples), key=lambda name: _p50(samples, name))
        rivals = sorted(set(samples) - set(own), key=lambda name: _p50(samples, name))
        if cell["scenario"] != "latency" or not own or not rivals:
            continue
        best = ratio_interval(samples[own[0]], samples[rivals[0]])
        rows.append(
            (
                *(cell[key] for key in ("stage", "batch", "threads")),
                *to_reference(samples, own[0]),
                f"{best.ratio:.3f} ({rivals[0]})",
                f"{best.low:.3f} to {best.high:.3f}",
                f"{_p50(samples, own[0]):.4g} ({own[0]})",
            )
        )
    columns = ("stage", "batch", "threads", f"to {REFERENCE}", "95 % interval", "to the fastest rival", "95 % interval")
    note = "Latency, ratios of medians: below 1 the bundle is faster. Intervals are bootstrapped."
    return web.table((*columns, "median ms"), rows, words=3) + web.paragraph(note if rows else "", "note")


def _p50(samples: Mapping[str, Sequence[float]], name: str) -> float:
    return summary(samples[name]).p50_ms


def cell_tables(document: Document, scenario: str) -> str:
    """One table per stage."""
    cells = [cell for cell in document["cells"] if cell["scenario"] == scenario]
    columns = ["batch", "threads", "contender", *(["images/s"] if scenario == "throughput" else [])]
    columns += ["p50 ms", "p90", "p95", "p99", "cv", "n", f"to {REFERENCE}", "95 % interval", "of peak"]
    columns += ["device ms"] if any(cell["device_ms"] for cell in cells) else []
    parts = []
    for stage in dict.fromkeys(cell["stage"] for cell in cells):
        found = [row for cell in cells if cell["stage"] == stage for row in cell_rows(document, cell)]
        rows = [[row[column] for column in columns] for row in found]
        shown = web.table(columns, rows, words=3, own=own_rows(row["contender"] for row in found))
        parts.append(web.folded(f"{scenario}, {stage}: every number", shown))
    return "".join(parts)


def processes(document: Document) -> str:
    """Medians over the processes of each contender."""
    rows = []
    for line in document["processes"]:
        samples = line["samples"]
        if not samples:
            continue
        seconds = (f"{median(samples, key):.3f}" for key in ("import_s", "load_s", "first_answer_s", "total_s"))
        sizes = (mib(samples, key) for key in ("peak_rss_bytes", "peak_private_bytes", "weights_bytes"))
        rows.append((line["contender"], line["threads"], *seconds, f"{median(samples, 'steady_ms'):.1f}", *sizes))
    columns = ("contender", "threads", "import s", "load s", "first answer s", "total s", "steady ms", "peak MiB")
    return web.table((*columns, "private MiB", "weights MiB"), rows, own=own_rows(row[0] for row in rows))


def own_rows(names: Iterable[str]) -> list[int]:
    """Numbers of the rows that are the bundle's."""
    return [place for place, name in enumerate(names) if is_bundle(name)]
