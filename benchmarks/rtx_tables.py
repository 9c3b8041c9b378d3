"""The table of compiled engines in docs/tensorrt.md, from results/rtx-builds.json."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks import RESULTS
from calipso_bench.markdown import table

_MB = 1e6
_COLUMNS = (
    "model",
    "precision",
    "build, s",
    "peak, MiB",
    "ONNX, MB",
    "plan, MB",
    "layers that multiply, by type",
    "8-bit weights restored at run time",
    "attention blocks fused",
)


def builds_table() -> str:
    """Return what the compiler made of every model and precision that was built."""
    document = json.loads((RESULTS / "rtx-builds.json").read_text(encoding="utf-8"))
    rows = document["rows"]
    built = [row for row in rows if "failed" not in row]
    lines = [table(_COLUMNS, [_row(row) for row in rows], words=2)]
    versions = ", ".join(sorted({row["compiler"] for row in built}))
    lines.append(
        f"\nTensorRT for RTX {versions}, on {document['environment']['cpu']} without a GPU; random weights, batches 1 "
        "to 32,\nevery GPU that the precision runs on in one plan. No engine was run.\n"
    )
    lines += [f"- {row['model']}, {row['precision']}: {row['failed']}\n" for row in rows if "failed" in row]
    return "".join(lines)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "failed" in row:
        return (row["model"], row["precision"], *["-"] * (len(_COLUMNS) - 2))
    products = ", ".join(f"{count} {kind}" for kind, count in sorted(row["products"].items()))
    weights = row["products_with_8_bit_weights"]
    fused, all_blocks = row["attentions_fused"], row["attentions_fused"] + row["attentions_not_fused"]
    return (
        row["model"],
        row["precision"],
        f"{row['seconds']:.1f}",
        f"{row['peak_mib']:.0f}",
        f"{row['onnx_bytes'] / _MB:.0f}",
        f"{row['plan_bytes'] / _MB:.0f}",
        products,
        f"{row['of_these_dequantised']} of {weights}" if weights else "-",
        f"{fused} of {all_blocks}" if all_blocks else "-",
    )
