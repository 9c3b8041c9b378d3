"""The tables of teaching: derived from the samples, and plain about what they do not tell."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import teach_tables

BAKED = [10.0, 11.0, 12.0] * 5


def document(cost: dict[str, list[float]]) -> dict[str, Any]:
    """Results with one cell per backend, whose rounds take so much of the time of baked."""
    latency = [
        {
            "backend": backend,
            "batch": 1,
            "classes": 1000,
            "shots": 16,
            "largest_logit_difference": 5e-7,
            "samples_ms": {"baked": BAKED, "inputs": [11.0 * ratio for ratio in ratios for _ in range(3)]},
        }
        for backend, ratios in cost.items()
    ]
    size = {
        "classes": 10_000,
        "shots": 16,
        "bytes": 2**20 * 300,
        "samples_ms": {"least": [40.0] * 15, "head": [50.0] * 15},
        "teach_s": [3.0, 2.0, 4.0],
    }
    environment = {"cpu": "cpu", "cores": 4, "packages": {"onnxruntime": "1", "openvino": "2"}}
    return {"model": "M", "threads": 1, "latency": latency, "sizes": [size], "environment": environment}


def table_of(results: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    (results / "teach.json").write_text(json.dumps(found))
    monkeypatch.setattr(teach_tables, "RESULTS", results)
    return teach_tables.teach_table()


def test_each_cell_has_the_median_ratio_of_its_rounds_and_what_was_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = table_of(tmp_path, document({"ort": [1.01, 1.0, 1.02, 1.01, 1.01]}), monkeypatch)

    assert "| ort | 1 | 11.0 | 1.010 (1.000 to 1.020) | 5 | 5e-07 |" in text
    assert "| 10,000 | 16 | 300.0 | 10.00 (10.00 to 10.00) | 25.0 % | 3 (2 to 4) |" in text


def test_a_cell_is_within_bounds_only_with_its_whole_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"quick": [1.0] * 5, "even": [1.0, 1.02, 1.04, 1.02, 1.05], "slow": [1.1] * 5}

    text = table_of(tmp_path, document(cost), monkeypatch)

    assert (
        "At most 3 % more, the whole interval, in 1 of 3 cells. Too close to call: even batch 1. More: slow batch 1."
        in text
    )
