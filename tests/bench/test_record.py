"""The results document: how it is kept, and when a run may go on with it."""

import json
from pathlib import Path

import pytest
from bench_samples import ABOUT, new_record, read_json

from calipso_bench.record import SCHEMA_VERSION, begin, read
from calipso_runtime.errors import CalipsoError, UsageError


def test_a_new_document_has_every_table_and_is_not_finished() -> None:
    document = new_record().document

    assert document["schema_version"] == SCHEMA_VERSION == 1
    assert document["kind"] == "calipso-bench"
    assert {"machine", "work", "contenders", "verification", "cells", "processes", "loadgen"} < set(document)
    assert document["finished"] is False


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    record = new_record(tmp_path / "out.json")
    record.save()
    record.document["finished"] = True
    record.save()

    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert read_json(tmp_path / "out.json")["finished"] is True


def test_a_cell_is_one_line_of_the_file_however_many_samples_it_has(tmp_path: Path) -> None:
    record = new_record(tmp_path / "out.json")
    record.document["cells"] += [{"samples_ms": {"eager": [1.0] * 1000}}, {"samples_ms": {}}]
    record.save()

    assert read_json(tmp_path / "out.json") == record.document
    assert len((tmp_path / "out.json").read_text().splitlines()) < 30


def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = new_record(tmp_path / "out.json")
    record.save()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)

    with pytest.raises(CalipsoError, match=r"out.json cannot be written: No space left on device"):
        record.save()
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_the_same_measurement_goes_on_with_what_the_file_holds(tmp_path: Path) -> None:
    record = new_record(tmp_path / "out.json")
    record.document["cells"].append({"scenario": "latency", "stage": "encode", "batch": 1, "threads": 2})
    record.save()

    again = new_record(tmp_path / "out.json")

    assert again.has_cell(scenario="latency", stage="encode", batch=1, threads=2)
    assert not again.has_cell(scenario="latency", stage="encode", batch=8, threads=2)


def test_clocks_and_load_do_not_make_another_measurement(tmp_path: Path) -> None:
    new_record(tmp_path / "out.json").save()

    new_record(tmp_path / "out.json", environment={**ABOUT["environment"], "clocks": {"current_mhz": 5}})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bundle": {"sha256": "other"}}, "another bundle"),
        ({"config": {"seconds": 2.0}}, "another config"),
        ({"commit": "abc"}, "another commit"),
        ({"pictures": {}}, "another pictures"),
        ({"environment": {**ABOUT["environment"], "packages": {"torch": "9"}}}, "another packages"),
        ({"environment": {**ABOUT["environment"], "instruction_sets": ["avx512_vnni"]}}, "another instruction_sets"),
    ],
)
def test_another_measurement_is_not_mixed_in(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    new_record(tmp_path / "out.json").save()

    with pytest.raises(UsageError, match=rf"results of another run \({told}\).*--overwrite"):
        new_record(tmp_path / "out.json", **changes)


def test_overwrite_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("something else")

    assert begin(dict(ABOUT), tmp_path / "out.json", overwrite=True).document["cells"] == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read as results"),
        ("[]", "holds no results"),
        ('{"kind": "calipso-accuracy"}', "holds no results"),
        ('{"kind": "calipso-bench", "schema_version": 2}', "has schema version 2, expected is 1"),
    ],
)
def test_a_file_that_holds_no_results_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "old.json").write_text(content)

    with pytest.raises(UsageError, match=told):
        read(tmp_path / "old.json")


def test_a_contender_has_one_line_however_often_it_is_asked_for() -> None:
    record = new_record()

    record.contender("eager").update(available=False, reason="no torch")

    assert record.contender("eager")["reason"] == "no torch"
    assert len(record.document["contenders"]) == 1
    assert not record.takes_part("eager")


def test_samples_of_processes_are_kept_by_contender_and_threads() -> None:
    record = new_record()
    record.add_sample("eager", 1, {"total_s": 1.0})
    record.add_sample("eager", 2, {"total_s": 2.0})
    record.add_sample("eager", 1, {"total_s": 3.0})

    assert [sample["total_s"] for sample in record.samples("eager", 1)] == [1.0, 3.0]
    assert len(record.document["processes"]) == 2
    assert json.dumps(record.document)
