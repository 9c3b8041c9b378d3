"""The tables of speed, from results/: every number is derived from raw samples."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import RESULTS
from calipso_bench.cells import threads_in_words
from calipso_bench.markdown import percent_of_peak, table
from calipso_bench.record import read
from calipso_bench.stats import Ratio, ratio_interval

BASE = "eager"
RIVALS = ("eager", "compile", "ort-plain", "openvino")
OURS = ("bundle/ort", "bundle/openvino")
# What `load` takes on a CPU.
DEFAULT = "bundle/ort"
Cell = Mapping[str, Any]
_MIB = 2**20
_NS_PER_MS = 1e6


def documents(kind: str) -> list[Mapping[str, Any]]:
    """The results of one kind, smaller models first."""
    found = [read(path) for path in sorted(RESULTS.glob(f"{kind}-*.json"))]
    return sorted(found, key=lambda each: each["work"]["flops_per_image"])


def cells_of(document: Mapping[str, Any], stage: str) -> list[Cell]:
    """The latency cells of a stage, by batch and threads."""
    cells = [cell for cell in document["cells"] if (cell["scenario"], cell["stage"]) == ("latency", stage)]
    return sorted(cells, key=lambda cell: (cell["batch"], cell["threads"]))


def median_of(cell: Cell, name: str) -> float:
    """Of a contender's samples, ms."""
    return float(statistics.median(cell["samples_ms"][name]))


def best(cell: Cell, names: Sequence[str]) -> str:
    """The fastest of these in a cell."""
    return min((name for name in names if name in cell["samples_ms"]), key=lambda name: median_of(cell, name))


def against_best_rival(cell: Cell, own: str) -> Ratio:
    """Own time over the best rival's."""
    samples = cell["samples_ms"]
    return ratio_interval(samples[own], samples[best(cell, RIVALS)])


def speed_cells() -> Iterator[tuple[str, Cell]]:
    """The cells of whole classifiers, each after its model's name."""
    for document in documents("speed"):
        for stage in ("classify", "end-to-end"):
            for cell in cells_of(document, stage):
                yield document["bundle"]["model"], cell


def speed_summary() -> str:
    """One picture at a time: what of the speed table a README has room for."""
    columns = ("model", "stage", "threads", *RIVALS[1:], *OURS, "faster of ours / best rival")
    rows = []
    for model, cell in speed_cells():
        if cell["batch"] == 1:
            against = _interval(against_best_rival(cell, best(cell, OURS)))
            rows.append((model, cell["stage"], str(cell["threads"]), *_to_base(cell), against))
    return f"One picture at a time. {_what()}\n\n{table(columns, rows, words=2)}"


def speed_table() -> str:
    """Ratios to eager of every contender, and of ours to the best rival."""
    columns = ["model", "stage", "batch", "threads", *RIVALS[1:], *OURS, "default / best rival", "best / best rival"]
    rows = []
    for model, cell in speed_cells():
        against = [_interval(against_best_rival(cell, name)) for name in (DEFAULT, best(cell, OURS))]
        rows.append((model, cell["stage"], str(cell["batch"]), str(cell["threads"]), *_to_base(cell), *against))
    return f"{_what()}\n\n{table(columns, rows, words=2)}\n{_verdict()}"


def _to_base(cell: Cell) -> list[str]:
    base = median_of(cell, BASE)
    return [f"{median_of(cell, name) / base:.2f}" for name in (*RIVALS[1:], *OURS)]


def _what() -> str:
    first = documents("speed")[0]
    machine, packages = first["environment"], first["environment"]["packages"]
    return (
        f"Time relative to eager PyTorch (lower is faster), fp32, 1,000 classes, 16,000 cache keys, CALIP on, random "
        f"weights; {machine['cpu']},\n{machine['cores']} cores; torch {packages['torch']}, onnxruntime "
        f"{packages['onnxruntime']}, openvino {packages['openvino']}. Medians of calls in turns; 95 % bootstrap "
        f"intervals."
    )


def _verdict() -> str:
    """How many cells are won, and which are not."""
    total, lost, unclear = 0, [], []
    for model, cell in speed_cells():
        total += 1
        found = against_best_rival(cell, best(cell, OURS))
        what = (
            f"{model} {cell['stage']} batch {cell['batch']}, {threads_in_words(cell['threads'])} "
            f"({_interval(found)} of {best(cell, RIVALS)})"
        )
        if found.low > 1:
            lost.append(what)
        elif found.high >= 1:
            unclear.append(what)
    text = "The bundle's faster engine is ahead of every rival, its whole interval below 1, in "
    text += f"{total - len(lost) - len(unclear)} of {total} cells.\n"
    if unclear:
        text += f"Too close to call: {'; '.join(unclear)}.\n"
    return text + (f"Behind: {'; '.join(lost)}.\n" if lost else "")


def _interval(ratio: Ratio) -> str:
    return f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def peak_table() -> str:
    """Achieved share of the machine's matmul peak, and what the head adds to the encoder."""
    columns = ("model", "batch", "threads", "of peak", "best rival", "head / encoder")
    rows = list(_peak_rows())
    peaks = [
        f"{threads}: {found['matmul_gflops']:.0f} GFLOP/s, reads {found['read_gb_s']:.0f} GB/s"
        for threads, found in documents("speed")[0]["machine"].items()
    ]
    return (
        f"fp32 matmul peak and memory, measured in the same run, by threads: {'; '.join(peaks)}.\n\n"
        f"{table(columns, rows, words=1)}"
    )


def _peak_rows() -> Iterator[tuple[str, ...]]:
    for document in documents("speed"):
        encoders = {(cell["batch"], cell["threads"]): cell for cell in cells_of(document, "encode")}
        for cell in cells_of(document, "classify"):
            shares = []
            for names in (OURS, RIVALS):
                share = percent_of_peak(document, cell, median_of(cell, best(cell, names)))
                shares.append("-" if share is None else f"{share:.0%}")
            encoder = encoders.get((cell["batch"], cell["threads"]))
            head = "-"
            if encoder is not None:
                head = f"{median_of(cell, DEFAULT) / median_of(encoder, DEFAULT) - 1:+.1%}"
            yield (document["bundle"]["model"], str(cell["batch"]), str(cell["threads"]), *shares, head)


def serving_table() -> str:
    """Cold start and memory of a process of its own."""
    parts = []
    for document in documents("serving"):
        lines = {line["contender"]: line["samples"] for line in document["processes"] if line["samples"]}
        totals = {name: [sample["total_s"] for sample in samples] for name, samples in lines.items()}
        rows = []
        for name, samples in lines.items():
            ratio = ratio_interval(totals[name], totals[BASE])
            peak = statistics.median(sample["peak_rss_bytes"] for sample in samples)
            weights = statistics.median(sample["weights_bytes"] for sample in samples)
            rows.append(
                (
                    name,
                    f"{statistics.median(totals[name]):.2f}",
                    f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
                    f"{peak / _MIB:.0f}",
                    f"{peak / weights:.2f}",
                )
            )
        columns = ("contender", "cold start s", "to eager", "peak MiB", "peak / weights")
        threads = document["processes"][0]["threads"]
        parts.append(
            f"{document['bundle']['model']}, {threads_in_words(threads)}, a new process for each of "
            f"{min(map(len, lines.values()))} samples: import, load, first answer; files in the system's cache.\n\n"
            f"{table(columns, rows)}"
        )
    return "\n".join(parts)


def loadgen_table() -> str:
    """What MLPerf LoadGen reports."""
    rows = []
    for document in documents("serving"):
        for line in document["loadgen"]:
            result, settings = line["result"], line["settings"]
            if line["scenario"] in ("SingleStream", "MultiStream"):
                found = f"{result['90th_percentile_latency_ns'] / _NS_PER_MS:.0f} ms, 90th percentile"
            elif line["scenario"] == "Offline":
                found = f"{result['samples_per_second']:.1f} pictures/s"
            else:
                found = f"{result['scheduled_samples_per_second']:.1f} pictures/s, {_bound(settings)}"
            same = f"{line['accuracy']['top1_equal_to_direct']:.0%} of {line['accuracy']['queries']}"
            rows.append((line["scenario"], "valid" if line["valid"] else "INVALID", found, same))
    return table(("scenario", "run", "LoadGen's figure", "accuracy mode: same answers"), rows, words=4)


def _bound(settings: Mapping[str, Any]) -> str:
    return f"{settings['percentile']:.0%} within {settings['latency_bound_ms']:.0f} ms"


def forms_table() -> str:
    """What each form gains: the time without it over the time with all."""
    import json

    rows = []
    batches: list[int] = []
    alone: dict[int, dict[str, float]] = {}
    found: dict[tuple[str, str, str], dict[int, str]] = {}
    for path in sorted(RESULTS.glob("forms-*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for cell in document["cells"]:
            samples = cell["samples_ms"]
            batches = sorted({*batches, cell["batch"]})
            alone.setdefault(cell["batch"], {})[cell["group"]] = statistics.median(samples["all forms"])
            for name in list(samples)[1:]:
                ratio = ratio_interval(samples[name], samples["all forms"])
                place = (document["model"], cell["group"], name)
                found.setdefault(place, {})[cell["batch"]] = _interval(ratio)
    rows += [(*place, *(ratios.get(batch, "-") for batch in batches)) for place, ratios in found.items()]
    shares = [
        f"{medians['head'] / medians['forms']:.1%} at batch {batch}"
        for batch, medians in alone.items()
        if {"head", "forms"} <= set(medians)
    ]
    return (
        table(("model", "of", "changed", *(f"batch {batch}" for batch in batches)), rows, words=3)
        + f"\nThe whole head alone takes {' and '.join(shares)} of the encoder's time.\n"
    )
