"""What the documentation says of compiled engines, from their results."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import rtx_tables


def row_of(model: str, precision: str, *, opset: int | None = None, narrow: int = 0, **values: Any) -> dict[str, Any]:
    row = {"model": model, "precision": precision, "opset": opset, "compiler": "1.7.1", "seconds": 2.94, "layers": 131}
    row |= {"peak_mib": 835.0, "onnx_bytes": 176e6, "plan_bytes": 182e6, "products": {"fp16": 63}}
    row |= {"products_with_8_bit_weights": narrow, "of_these_dequantised": 0}
    return {**row, "attentions_fused": 12, "attentions_not_fused": 0, **values}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(rtx_tables, "RESULTS", tmp_path)

    def write(*rows: dict[str, Any]) -> None:
        document = {"environment": {"cpu": "a CPU"}, "rows": rows}
        (tmp_path / "rtx-builds.json").write_text(json.dumps(document), encoding="utf-8")

    return write


def test_every_model_and_precision_has_a_line(written: Any) -> None:
    written(row_of("ViT-B-32", "fp16"), {"model": "RN50", "precision": "fp8", "failed": "build: no memory"})

    text = rtx_tables.builds_table()

    assert "| ViT-B-32 | fp16 | 2.9 | 835 | 176 | 182 | 63 fp16 | - | 12 of 12 |" in text
    assert "- RN50, fp8: build: no memory" in text


def test_what_fp8_leaves_in_fp16_is_counted_against_int8(written: Any) -> None:
    written(row_of("convnext_base", "int8", narrow=111), row_of("convnext_base", "fp8", narrow=75))

    assert "- convnext_base in fp8: 36 of 111 products" in rtx_tables.builds_table()


def test_an_engine_of_another_opset_is_compared_and_is_no_line_of_the_table(written: Any) -> None:
    written(row_of("ViT-B-32", "fp16"), row_of("ViT-B-32", "fp16", opset=23, layers=141))

    assert rtx_tables.attention_lines() == (
        "- ViT-B-32 in fp16: 141 layers with opset 23, 131 without the operator; 12 and 12 fused attention blocks.\n"
    )
    assert rtx_tables.builds_table().count("| ViT-B-32 |") == 1
