"""The sweep over open_clip's configurations: what is built, what is kept, what the table says."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks import sweep, sweep_one, sweep_tables
from benchmarks.sweep_models import described

from calipso_export.clip import open_clip

SAMPLE = ("RN50", "ViT-S-32-alt", "ViT-B-16-SigLIP", "PE-Core-T-16-384", "convnext_tiny", "coca_ViT-B-32")


def rows_of(path: Path) -> dict[str, dict[str, object]]:
    return {row["model"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def command(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "benchmarks.sweep", "--output", str(path), "--layers", "2", *options]
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_a_sample_of_the_families_exports_and_agrees_with_open_clip(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    command(path, "--only", *SAMPLE)
    rows = rows_of(path)
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(SAMPLE, "exported")
    assert all("text_embedding" in row["worst"] for row in rows.values())  # type: ignore[operator]
    assert {name for name, row in rows.items() if row["why_no_calip"] is None} == {
        "RN50",
        "ViT-S-32-alt",
        "convnext_tiny",
    }


@pytest.mark.slow
def test_a_second_run_goes_on_where_the_first_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    command(path, "--only", "ViT-S-32-alt")
    first = path.read_text(encoding="utf-8")
    command(path, "--only", "ViT-S-32-alt")
    assert path.read_text(encoding="utf-8") == first
    command(path, "--only", "ViT-S-*-alt")
    assert set(rows_of(path)) == {"ViT-S-32-alt", "ViT-S-16-alt"}


def test_a_text_tower_of_a_hub_leaves_the_image_tower() -> None:
    assert described("roberta-ViT-B-32").needs == "roberta-base"
    assert described("roberta-ViT-B-32").vision_parameters == described("ViT-B-32").vision_parameters


def test_a_model_is_described_without_its_weights() -> None:
    huge = described("EVA02-E-14")
    assert (huge.parameters > 4e9, huge.image_size) == (True, (224, 224))


def test_all_layers_are_kept_over_fewer_ones() -> None:
    whole, few = {"status": "exported", "layers": None}, {"status": "exported", "layers": 2}
    assert sweep.is_done(whole, None)
    assert sweep.is_done(whole, 2)
    assert sweep.is_done(few, 2)
    assert not sweep.is_done(few, None)
    assert not sweep.is_done({"status": "broken", "layers": None}, None)
    assert not sweep.is_done(None, 2)


def test_what_does_not_fit_has_fewer_layers() -> None:
    model = described("ViT-B-32")
    assert sweep.layers_within(sweep.peak_bytes(model), gigabytes=20) is None
    assert sweep.layers_within(sweep.peak_bytes(model), gigabytes=1) == 2


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_process_that_dies_is_told_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(name: str, layers: int | None) -> None:
        os._exit(9)

    monkeypatch.setattr(sweep_one, "swept", dies)
    row = sweep.one(multiprocessing.get_context("fork"), described("ViT-S-32"), 2)
    assert (row["model"], row["status"]) == ("ViT-S-32", "broken")
    assert "ended with 9" in row["reason"]


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_an_error_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, layers: int | None) -> None:
        message = f"no {name}\nand more"
        raise RuntimeError(message)

    monkeypatch.setattr(sweep_one, "swept", fails)
    row = sweep.one(multiprocessing.get_context("fork"), described("ViT-S-32"), 2)
    assert (row["status"], row["reason"]) == ("broken", "RuntimeError: no ViT-S-32")


def test_no_model_is_begun_after_the_time_given() -> None:
    begun = []
    calls = [lambda: begun.append(1) or {"model": "a"}]
    assert list(sweep.in_time(calls, 1, time.monotonic() - 1)) == []
    assert list(sweep.in_time(calls, 1, None)) == [{"model": "a"}]
    assert begun == [1]


def test_names_of_no_model_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep", "--only", "ViT-Z-*", "--output", str(tmp_path / "none.json")])

    with pytest.raises(SystemExit) as refused:
        sweep.main()

    assert "ViT-Z-*" in str(refused.value.code)


def swept_row(name: str, **values: object) -> dict[str, object]:
    row = {"status": "exported", "family": "vit", "nodes": 9, "why_no_calip": None, "why_no_text": None}
    return {**described(name).as_json(), "layers": None, **row, "worst": {"logits": 2e-6, "tokens": 3e-6}, **values}


def table_of(monkeypatch: pytest.MonkeyPatch, folder: Path, *rows: dict[str, object]) -> str:
    (folder / "sweep.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    monkeypatch.setattr(sweep_tables, "RESULTS", folder)
    return sweep_tables.models_table()


def test_every_configuration_has_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = table_of(monkeypatch, tmp_path, swept_row("ViT-B-32"), swept_row("RN50", layers=2))
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert set(open_clip.list_models()) <= set(lines)
    assert lines["ViT-B-32"] == "| ViT-B-32 | vit | yes | yes | yes | yes | 151 M | 224 | 3.0e-06 | 9 |"
    assert "yes, 2 layers" in lines["RN50"]
    assert "not swept yet" in lines["RN101"]
    assert f"Of {len(open_clip.list_models())} configurations 2 (" in text


def test_a_reason_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [swept_row(name, why_no_calip="it pools with attention") for name in ("ViT-B-32", "ViT-B-16")]
    text = table_of(monkeypatch, tmp_path, *rows)
    assert text.count("it pools with attention") == 1
    assert text.count("no (1)") == 2
    assert "1. it pools with attention" in text
