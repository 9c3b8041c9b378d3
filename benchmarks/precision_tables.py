"""The tables of precision in README and docs, from results/precision-*.json."""

import json
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks import RESULTS

_MB = 1e6
_ENGINES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}


def trained_table() -> str:
    """Every precision of the shipped model."""
    document = _read("precision-trained.json")
    rows, samples = document["rows"], document["samples_ms"]
    plain = rows[0]["accuracy"]["eager"]["top1"]
    columns = (
        "precision",
        "MB",
        "same top class",
        "top-1 (95 % interval)",
        "points lost (95 % interval)",
        "McNemar's p",
        "lowest cosine",
        "time to fp32, ONNX Runtime",
        "OpenVINO",
    )
    lines = [f"| {' | '.join(columns)} |\n", f"|---|{'---:|' * (len(columns) - 1)}\n"]
    for row in rows:
        accuracy, worst = row["accuracy"], row["worst"]
        low, high = accuracy["shipped"]["interval_95"]
        less, more = accuracy["drop_interval_95"]
        lines.append(
            f"| {row['precision']}{'' if row['status'] == 'passed' else ' (failed)'} | {row['bytes'] / _MB:.2f} | "
            f"{worst['same_top1']:.2%} | {accuracy['shipped']['top1']:.2%} ({low:.1%} to {high:.1%}) | "
            f"{100 * accuracy['drop']:.2f} ({100 * less:.2f} to {100 * more:.2f}) | {accuracy['mcnemar_p']:.2f} | "
            f"{worst['embedding_cosine']:.5f} | {_ratio(samples['ort'], row['precision'], 'fp32')} | "
            f"{_ratio(samples['openvino'], row['precision'], 'fp32')} |\n"
        )
    lines.append(
        f"\n{document['pictures']} held-out pictures of the drawn world, eager PyTorch's top-1 is {plain:.2%}; "
        f"{document['environment']['cpu']}, one thread, one picture.\nThe worst of both graphs of a bundle counts. "
        "A model of 3.7 M parameters gains less than a large one: see the next table.\n"
    )
    return "".join(lines)


def speed_table() -> str:
    """Full-size models: each precision and engine against the fp32 bundle on ONNX Runtime, and against eager."""
    document = _read("precision-speed.json")
    columns = ("model", "threads", "batch", "fp32, best engine, to eager")
    names = [name for name in document["cells"][0]["samples_ms"] if name != "eager" and not name.startswith("fp32")]
    lines = [
        f"| {' | '.join((*columns, *names))} |\n",
        f"|---|{'---:|' * (len(columns) + len(names) - 1)}\n",
    ]
    for cell in document["cells"]:
        samples = cell["samples_ms"]
        best = min((f"fp32 on {engine}" for engine in _ENGINES), key=lambda name: statistics.median(samples[name]))
        ratios = [_ratio(samples, name, best) for name in names]
        lines.append(
            f"| {cell['model']} | {cell['threads']} | {cell['batch']} | {_ratio(samples, best, 'eager')} | "
            f"{' | '.join(ratios)} |\n"
        )
    lines.append(
        "\nTime to the fp32 bundle on its faster engine (lower is faster); the fourth column is that one's own time to "
        f"eager PyTorch. Random weights, ten classes;\n{document['environment']['cpu']}. Medians of calls in turns.\n"
    )
    return "".join(lines)


def planted_table() -> str:
    """Whether full-size models pass with outliers, and what was pinned."""
    document = _read("precision-planted.json")
    columns = (
        "model",
        "planted",
        "precision",
        "parity",
        "same top class",
        "worst logit error",
        "cosine",
        "pinned to fp32",
    )
    lines = [f"| {' | '.join(columns)} |\n", "|---|---|---|---|---:|---:|---:|---|\n"]
    for row in document["rows"]:
        worst = row["worst"]
        lines.append(
            f"| {row['model']} | {row['planted']} | {row['precision']} | {row['status']} | {worst['same_top1']:.2%} | "
            f"{float(worst['relative_logit_error']):.1e} | {float(worst['embedding_cosine']):.6f} | "
            f"{', '.join(_pinned(row['pinned'])) or '-'} |\n"
        )
    return "".join(lines)


def tools_table() -> str:
    """One fp32 graph lowered by several tools: 16 bits, then eight."""
    document = _read("precision-tools.json")
    planted = {row["name"]: row["emulated"]["finite"] for row in document["fp16_planted"]}
    lines = ["| fp16 | casts | lint findings | mean error | same top class | finite with an overflow planted |\n"]
    lines.append("|---|---:|---:|---:|---:|---:|\n")
    lines += [
        f"| {row['name']} | {row['casts']} | {row['findings']['count']} | {row['emulated']['mean_error']:.1e} | "
        f"{row['emulated']['same_top1']:.2%} | {_share(planted.get(row['name']))} |\n"
        for row in document["fp16"]
    ]
    lines.append("\n| int8 | lint findings | mean error | max error | same top class | time to fp32 |\n")
    lines.append("|---|---:|---:|---:|---:|---:|\n")
    for row in document["int8"]:
        found = row["onnxruntime"]
        lines.append(
            f"| {row['name']} | {row['findings']['count']} | {found['mean_error']:.1e} | {found['max_error']:.1e} | "
            f"{found['same_top1']:.2%} | {_ratio(document['samples_ms'], row['name'], 'fp32')} |\n"
        )
    lines.append(
        "\nErrors are relative to the spread of a picture's fp32 logits; 16-bit graphs answer emulated. Dynamic graphs "
        "and those for ONNX Runtime use\nits own operators, which the lint refuses. Other ranges change no time.\n"
    )
    lines.append("\n| calibration | pictures | memory grown, MB |\n|---|---:|---:|\n")
    lines += [
        f"| {each['tool']} | {each['pictures']} | {each['grown_bytes'] / _MB:.0f} |\n"
        for tool in document["calibration"]
        for each in tool
    ]
    return "".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _pinned(pinned: list[dict[str, Any]]) -> Iterator[str]:
    """Layers with the number of their nodes."""
    layers: dict[str, int] = {}
    for each in pinned:
        layer = each["node"].rpartition("/")[0].removeprefix("tower.visual.")
        layers[layer] = layers.get(layer, 0) + 1
    for layer, count in layers.items():
        yield f"{layer} ({count})"


def _ratio(samples: dict[str, list[float]], name: str, base: str) -> str:
    """Of the medians, where both were measured."""
    if name not in samples or base not in samples:
        return "-"
    return f"{statistics.median(samples[name]) / statistics.median(samples[base]):.2f}"


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))
