"""The benchmark of tower families goes on where it stopped, and tells why something failed once."""

import json
from pathlib import Path

import pytest
from benchmarks import families, family_tables


def test_what_failed_is_measured_again_with_more_time_to_repair_it() -> None:
    failed, passed = ({"status": status, "repair_minutes": 1.0} for status in ("failed", "passed"))

    assert families.is_done(failed, 1)
    assert not families.is_done(failed, 5)
    assert families.is_done(passed, 5)


def test_a_result_replaces_the_earlier_one_of_its_model_and_precision() -> None:
    row = {"model": "RN50", "precision": "fp8"}

    assert families.is_same(row, {**row, "status": "passed"})
    assert not families.is_same(row, {**row, "precision": "fp16"})
    assert not families.is_same(row, {**row, "model": "RN101"})
    assert families.is_same({"model": "RN50"}, {"model": "RN50", "samples_ms": {}})


def test_the_table_tells_a_failure_once_for_all_sizes_of_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = {
        "model": "RN50",
        "precision": "fp8",
        "repair_minutes": 2.0,
        "status": "failed",
        "failures": [f"batch model.onnx, {size}: too far off" for size in (1, 2, 7)],
        "worst": {"relative_logit_error": 0.5},
        "pinned": [],
    }
    document = {"rows": [row], "cells": [], "pictures": 12, "classes": 10, "environment": {"cpu": "a CPU"}}
    (tmp_path / "families.json").write_text(json.dumps(document))
    monkeypatch.setattr(family_tables, "RESULTS", tmp_path)

    told = family_tables.families_table()

    assert "- RN50, fp8, after at most 2 min of repair: model.onnx: too far off\n" in told
    assert "failed (5e-01)" in told
