"""Writes the numbers of README and docs from benchmarks/results/: `make docs`; a test fails where they drift.

python -m benchmarks.report [--check]
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import (
    RESULTS,
    ROOT,
    family_tables,
    fewshot_tables,
    gpu_tables,
    head_tables,
    host_tables,
    int8_tables,
    pixel_tables,
    precision_tables,
    rtx_tables,
    speed_tables,
    sweep_compile_tables,
    sweep_tables,
    teach_tables,
)

DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "precision.md",
    ROOT / "docs" / "gpu.md",
    ROOT / "docs" / "pixels.md",
    ROOT / "docs" / "points.md",
    ROOT / "docs" / "methods.md",
    ROOT / "docs" / "models.md",
    ROOT / "docs" / "teach.md",
    ROOT / "docs" / "hosts.md",
    ROOT / "docs" / "tensorrt.md",
)
_START, _END = "<!-- generated: ", "<!-- end -->"
_MB = 1e6
_GIB = 2**30


def main() -> int:
    """Rewrite the documents, or with --check exit 1 if that would change one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    drifted = False
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if check and before != after:
            print(f"{path.name} does not show what benchmarks/results/ holds: run `make docs`", file=sys.stderr)
            drifted = True
        elif before != after:
            path.write_text(after, encoding="utf-8")
    return int(drifted)


def rendered(text: str) -> str:
    """The text with every generated part filled in anew.

    Raises:
        ValueError: a part is marked that is not known, or does not end.
    """
    before, found, rest = text.partition(_START)
    if not found:
        return before
    name, _, rest = rest.partition(" -->\n")
    _, end, rest = rest.partition(_END)
    if name not in PARTS or not end:
        message = f"the generated part {name!r} is unknown, or has no {_END}"
        raise ValueError(message)
    return f"{before}{_START}{name} -->\n{PARTS[name]()}{_END}{rendered(rest)}"


def demo_table() -> str:
    """The demo's table, from results/demo.json."""
    document = _read("demo.json")
    rows = document["rows"]
    columns = (
        "head",
        "eager PyTorch",
        "exported file",
        "95 % interval",
        "agreement",
        "worst error",
        "chosen on the shots",
    )
    lines = [f"| {' | '.join(columns)} |\n", "|---|---:|---:|---:|---:|---:|---|\n"]
    for row in rows:
        low, high = row["shipped"]["interval_95"]
        lines.append(
            f"| {row['head']} | {row['eager']['top1']:.2%} | {row['shipped']['top1']:.2%} | {low:.1%} to {high:.1%} | "
            f"{row['agreement']:.2%} | {row['relative_logit_error']:.1e} | {row['parameters'] or '-'} |\n"
        )
    lines.append(
        f"\nTop-1 on {rows[0]['pictures']} held-out pictures of {rows[0]['pictures'] // document['held_out']} classes, "
        f"{document['shots']} shots per class, one prompt. Most of the cache's gain is on six\n"
        "classes whose colour words the training never used. Gains in a drawn world say nothing about photographs.\n"
        "The last row takes CALIP's weights from the second, so that one file holds all three heads; the search by\n"
        "itself keeps CALIP only where it helps on the shots.\n"
    )
    return "".join(lines)


def full_size_table() -> str:
    """Cost of a full-size export, from results/full-size-*.json."""
    lines = [
        "Export with verification, 1,000 classes, 16,000 cache keys, CALIP on, random weights; medians over ",
        "separate processes:\n\n",
        "| model | seconds | peak memory | file | visual weights + head | worst logit error | on |\n",
        "|---|---:|---:|---:|---:|---:|---|\n",
    ]
    for path in sorted(RESULTS.glob("full-size-*.json")):
        document = _read(path.name)
        samples, machine = document["samples"], document["environment"]
        first = samples[0]
        seconds = [sample["seconds"] for sample in samples]
        lines.append(
            f"| {document['model']} | {statistics.median(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f}, "
            f"{len(samples)} runs) | {max(sample['peak_rss_bytes'] for sample in samples) / _GIB:.2f} GiB | "
            f"{first['file_bytes'] / _MB:.1f} MB | {(first['visual_bytes'] + first['head_bytes']) / _MB:.1f} MB | "
            f"{max(sample['worst']['relative_logit_error'] for sample in samples):.1e} | "
            f"{machine['cpu']}, {machine['cores']} cores |\n"
        )
    return "".join(lines)


def points_table() -> str:
    """Solids and the cost of their projection, from results/points.json."""
    document = _read("points.json")
    rows = document["rows"]
    classes = rows[0]["clouds"] // document["held_out"]
    head = (
        f"The {classes} solids of `examples/solids`, {document['shots']} shots per class, {rows[0]['clouds']} held-out "
        "clouds, the shipped model, measured once:\n\n"
    )
    lines = [
        head,
        "| | eager PyTorch | exported file | 95 % interval | worst error |\n",
        "|---|---:|---:|---:|---:|\n",
    ]
    for row in rows:
        low, high = row["shipped"]["interval_95"]
        lines.append(
            f"| {row['title']} | {row['eager']['top1']:.2%} | {row['shipped']['top1']:.2%} | {low:.1%} to {high:.1%} | "
            f"{row['relative_logit_error']:.1e} |\n"
        )
    (first, clouds), (second, pictures) = document["samples_ms"].items()
    ratios = [cloud / picture for cloud, picture in zip(clouds, pictures, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    lines.append(
        f"\nViT-B-32, ONNX Runtime, one thread of {document['environment']['cpu']}, {len(ratios)} pairs of calls:\n"
        f"{first} takes {middle:.2f} of the time of {second} (median ratio of neighbouring calls; quartiles "
        f"{low:.2f} to {high:.2f}).\n"
    )
    return "".join(lines)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


PARTS: dict[str, Callable[[], str]] = {
    "demo": demo_table,
    "families": family_tables.families_table,
    "fewshot": fewshot_tables.fewshot_table,
    "forms": speed_tables.forms_table,
    "full-size": full_size_table,
    "gpu": gpu_tables.gpu_table,
    "heads": head_tables.heads_table,
    "hosts": host_tables.hosts_table,
    "int8-cpu": int8_tables.table,
    "loadgen": speed_tables.loadgen_table,
    "mobileclip": family_tables.mobileclip_table,
    "models": sweep_tables.models_table,
    "models-compiled": sweep_compile_tables.compiled_table,
    "peak": speed_tables.peak_table,
    "pixels": pixel_tables.pixels_table,
    "points": points_table,
    "precision-planted": precision_tables.planted_table,
    "precision-speed": precision_tables.speed_table,
    "precision-tools": precision_tables.tools_table,
    "precision-trained": precision_tables.trained_table,
    "rtx-attention": rtx_tables.attention_lines,
    "rtx-builds": rtx_tables.builds_table,
    "serving": speed_tables.serving_table,
    "speed": speed_tables.speed_table,
    "speed-summary": speed_tables.speed_summary,
    "teach": teach_tables.teach_table,
    "throughput": host_tables.throughput_table,
}


if __name__ == "__main__":
    sys.exit(main())
