"""The table of int8 by instruction set in docs/precision.md, from results/int8-*.json."""

import json
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import RESULTS

_ENGINES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
_FORMS = {
    ("pair-safe", "ort"): "pair-safe (default), as it is",
    ("pair-safe", "openvino"): "pair-safe (default), as it is",
    ("full-range", "ort"): "`--full-range`, made unsigned",
    ("full-range", "openvino"): "`--full-range`, products in fp32",
    ("full-range, saturating", "ort"): "full range, saturating (earlier versions)",
    ("full-range, saturating", "openvino"): "full range, saturating (earlier versions)",
}
# On a CPU with VNNI the full range is loaded as it is, and nothing saturates.
_FORMS_WITH_VNNI = {
    ("full-range", "ort"): "`--full-range`, as it is",
    ("full-range", "openvino"): "`--full-range`, as it is",
}
_COLUMNS = (
    "CPU",
    "engine",
    "weights",
    "gates",
    "mean logit error",
    "largest",
    "points lost (95 % interval)",
    "time to fp32",
    "time to eager",
)
_PLACE = {"threads": 1, "batch": 1}


def table() -> str:
    """Return every form that was measured on every instruction set, and what it was measured on."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("int8-*.json"))]
    lines = [f"| {' | '.join(_COLUMNS)} |\n", f"|---|---|---|---|{'---:|' * (len(_COLUMNS) - 4)}\n"]
    lines += [line for document in documents for line in _rows(document)]
    images = documents[0]["agreement"][0]["images"]
    machines = "; ".join(f"{each['instruction_set']}: {each['environment']['cpu']}" for each in documents)
    lines.append(
        f"\nErrors and points: the shipped model on {images} held-out images of the synthetic world. "
        "Times: ViT-B-32 with random weights, one image,\none thread, to the fp32 bundle on the same engine and to "
        f"eager PyTorch. Medians of calls in turns. {machines}.\n"
    )
    return "".join(lines)


def _rows(document: Mapping[str, Any]) -> Iterator[str]:
    with_vnni = document["instruction_set"] == "vnni"
    cells = [cell for cell in document["cells"] if _PLACE.items() <= cell.items()]
    samples = cells[0]["samples_ms"] if cells else {}
    for row in document["agreement"]:
        form, engine = row["form"], row["engine"]
        if with_vnni and form == "full-range, saturating":
            continue
        forms = {**_FORMS, **(_FORMS_WITH_VNNI if with_vnni else {})}
        error, (low, high) = row["relative_logit_error"], row["drop_interval_95"]
        lost = f"{100 * row['drop']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        name = f"{form} on {engine}"
        yield (
            f"| {document['instruction_set']} | {_ENGINES[engine]} | {forms[form, engine]} | {row['status']} | "
            f"{error['mean']:.1e} | {error['max']:.1e} | {lost} | "
            f"{_ratio(samples, name, f'fp32 on {engine}')} | {_ratio(samples, name, 'eager')} |\n"
        )


def _ratio(samples: Mapping[str, list[float]], name: str, to: str) -> str:
    if name not in samples or to not in samples:
        return "-"
    return f"{statistics.median(samples[name]) / statistics.median(samples[to]):.2f}"
