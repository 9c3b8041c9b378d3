"""What docs/tensorrt.md says of compiled engines, from results/rtx-builds.json."""

import json
from collections.abc import Iterator, Mapping, Sequence
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
    "8-bit weights dequantised at run time",
    "attention blocks fused",
)


def builds_table() -> str:
    """Return what the compiler made of every model and precision that was built."""
    document = _document()
    rows = [row for row in document["rows"] if row.get("opset") is None]
    built = [row for row in rows if "failed" not in row]
    lines = [table(_COLUMNS, [_row(row) for row in rows], words=2)]
    versions = ", ".join(sorted({row["compiler"] for row in built}))
    lines.append(
        f"\nTensorRT for RTX {versions}, on {document['environment']['cpu']} without a GPU; random weights, batches 1 "
        "to 32,\nevery GPU that the precision runs on in one plan. No engine was run.\n"
    )
    lines += [f"- {row['model']}, {row['precision']}: {row['failed']}\n" for row in rows if "failed" in row]
    return "".join((*lines, *_left_in_fp16(built)))


def attention_lines() -> str:
    """Return what attention as one operator costs: layers of the engines with it and without."""
    rows = [row for row in _document()["rows"] if "failed" not in row]
    plain = {(row["model"], row["precision"]): row for row in rows if row.get("opset") is None}
    return "".join(
        f"- {row['model']} in {row['precision']}: {row['layers']} layers with opset {row['opset']}, "
        f"{plain[row['model'], row['precision']]['layers']} without the operator; {row['attentions_fused']} and "
        f"{plain[row['model'], row['precision']]['attentions_fused']} fused attention blocks.\n"
        for row in rows
        if row.get("opset") is not None
    )


def _document() -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads((RESULTS / "rtx-builds.json").read_text(encoding="utf-8"))
    return document


def _left_in_fp16(built: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines about models of which fp8 leaves products in fp16 that int8 has in eight bits."""
    counts = {(row["model"], row["precision"]): row["products_with_8_bit_weights"] for row in built}
    for (model, precision), count in counts.items():
        of_int8 = counts.get((model, "int8"), count)
        if precision == "fp8" and count < of_int8:
            yield f"- {model} in fp8: {of_int8 - count} of {of_int8} products are convolutions that stay in fp16.\n"


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
