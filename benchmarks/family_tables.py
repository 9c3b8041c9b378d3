"""The tables of the tower families, from results/families.json and results/mobileclip.json."""

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import RESULTS, families
from benchmarks.precision_speed import ENGINES
from calipso_bench.markdown import table
from calipso_bench.stats import ratio_interval

_ALL = "all forms"
_GATED = tuple(precision for pair in families.PASSES for precision in pair)
_TIMED = tuple(f"{precision} on {engine}" for engine in ENGINES for precision in families.TIMED)
_SHOWN = 8
_BATCH = re.compile(r"^batch (\S+), \d+: ")


def families_table() -> str:
    """What became of every family in every precision, its times, and why something failed."""
    document = _read("families.json")
    by_model: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in document["rows"]:
        by_model.setdefault(row["model"], {})[row["precision"]] = row
    samples = {cell["model"]: cell["samples_ms"] for cell in document["cells"]}
    rows = []
    for model, found in by_model.items():
        times = samples.get(model, {})
        rows.append((
            model,
            families.MODELS[model],
            *(_outcome(found.get(precision)) for precision in _GATED),
            *(_ratio(times, name, "eager") for name in _TIMED),
        ))  # fmt: skip
    missing = [model for model in families.MODELS if model not in by_model]
    lines = [table(("model", "family", *_GATED, *_TIMED), rows, words=2 + len(_GATED))]
    lines.append(
        f"\nFull size, random weights and text features, {document['pictures']} drawn pictures, {document['classes']} "
        f"classes;\nthe worst logit error is in brackets. Times "
        f"are to eager PyTorch's tower, one picture, one thread of {document['environment']['cpu']}, in turns.\n"
    )
    lines += [
        f"- {model}, {precision}, after at most {minutes:g} min of repair: {reason}\n"
        for model, precision, minutes, reason in _reasons(by_model)
    ]
    lines += ["\n", *(_gain(samples, engine) for engine in ENGINES)]
    if missing:
        lines.append(f"\nNot measured: {', '.join(missing)}.\n")
    lines.append("\n`-` is a precision or engine that was not measured.\n")
    return "".join(lines)


def mobileclip_table() -> str:
    """How near MobileCLIP-S1 comes to the peak, what each form gains, and where the time goes."""
    document = _read("mobileclip.json")
    rows = []
    for cell in document["cells"]:
        samples, batch = cell["samples_ms"], cell["batch"]
        peak = max(rate for each in cell["peaks_gflops"] for rate in each.values())
        for name, taken in samples.items():
            median_ms = statistics.median(taken)
            of_peak = document["flops_per_image"] * batch / (median_ms / 1e3) / 1e9 / peak
            to_all = ratio_interval(taken, samples[_ALL])
            rows.append((
                str(batch),
                name,
                f"{median_ms / batch:.1f}",
                f"{to_all.ratio:.2f} ({to_all.low:.2f} to {to_all.high:.2f})",
                f"{of_peak:.0%}",
            ))  # fmt: skip
    total_us = sum(each["us"] for each in document["profile"])
    shares = ", ".join(f"{each['kind']} {each['us'] / total_us:.1%}" for each in document["profile"][:_SHOWN])
    return (
        table(("batch", "MobileCLIP-S1", "ms per picture", "to all forms", "of the peak"), rows, words=2)
        + f"\n{document['flops_per_image'] / 1e9:.2f} GFLOP per picture, random weights, one thread of "
        f"{document['environment']['cpu']}, processor time, in turns; the peak is\nthe fastest fp32 product of any "
        f"engine in the same process. One picture with all forms, by ONNX Runtime's profiler:\n{shares}.\n"
    )


def _outcome(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["status"] == "refused":
        return "refused"
    pinned = f", {len(row['pinned'])} pinned" if row["pinned"] else ""
    return f"{row['status']}{pinned} ({float(row['worst']['relative_logit_error']):.0e})"


def _reasons(by_model: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[tuple[str, str, float, str]]:
    for model, found in by_model.items():
        for precision in _GATED:
            if precision in found and found[precision]["failures"]:
                row = found[precision]
                # The same of every size of batch.
                failures = dict.fromkeys(_BATCH.sub(r"\1: ", each) for each in row["failures"])
                yield model, precision, row["repair_minutes"], "; ".join(failures)


def _gain(samples: Mapping[str, Mapping[str, list[float]]], engine: str) -> str:
    eight, full = (f"{precision} on {engine}" for precision in ("int8", "fp32"))
    ratios = {
        statistics.median(each[eight]) / statistics.median(each[full]): model
        for model, each in samples.items()
        if eight in each and full in each
    }
    if not ratios:
        return ""
    least, most = min(ratios), max(ratios)
    return f"- int8 to fp32 on {engine}: {least:.2f} ({ratios[least]}) to {most:.2f} ({ratios[most]})\n"


def _ratio(samples: Mapping[str, list[float]], name: str, base: str) -> str:
    if name not in samples or base not in samples:
        return "-"
    return f"{statistics.median(samples[name]) / statistics.median(samples[base]):.2f}"


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))
