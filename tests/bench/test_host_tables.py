"""The table of hosts: ratios of neighbouring rounds, and a reason for every empty cell."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import host_tables

ENVIRONMENT = {"cpu": "cpu", "cores": 2}


def row(host: str, own: list[list[float]], python: list[list[float]]) -> dict[str, Any]:
    return {
        "host": host,
        "environment": ENVIRONMENT,
        "photographs": 630,
        "agreement": 0.995,
        "relative_logit_error": 2e-6,
        "samples_ms": own,
        "python_ms": python,
    }


def table_of(rows: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "hosts.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(host_tables, "RESULTS", folder)
    return host_tables.hosts_table()


def test_a_ratio_is_of_rounds_that_were_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The second round was disturbed, for both alike.
    found = row("C++", [[2, 2, 9], [20, 20, 20], [6, 6, 6]], [[4, 4, 4], [40, 40, 40], [6, 6, 6]])

    text = table_of([row("Python", [[4]], [[4]]), found], tmp_path, monkeypatch)

    assert host_tables.ratios(found) == [0.5, 0.5, 1.0]
    assert "| C++ | 99.50% | 2.0e-06 | 6.0 | 0.50 (0.50 to 1.00) |" in text
    assert "| Python | 99.50% | 2.0e-06 | 4.0 | 1 |" in text


def test_an_empty_row_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = table_of(
        [row("Python", [[4]], [[4]]), {"host": "browser", "reason": "there is no Chromium"}], tmp_path, monkeypatch
    )

    assert "| browser | - | - | - | - |" in text
    assert "- browser: not measured, there is no Chromium." in text
