"""Two runs compared: what is slower beyond doubt is a regression, what the machine did is not."""

from typing import Any

import pytest
from report_samples import SPEEDS, document, without

from calipso_bench.compare import compare
from calipso_runtime.errors import UsageError

RIVALS = {name: 1.2 for name in SPEEDS if not name.startswith("bundle/")}


def regressed(old: dict[str, Any], new: dict[str, Any], **options: Any) -> set[str]:
    return {row.cell.scenario for row in compare(old, new, **options).regressions}


def test_the_same_speed_is_no_regression() -> None:
    found = compare(document(seed=1), document(seed=2))

    assert found.regressions == ()
    assert "No regression" in found.markdown()


def test_a_slower_bundle_is_a_regression_in_every_cell_of_time() -> None:
    old, new = document(seed=1), document(seed=2, factors={"bundle/ort": 1.2})

    found = compare(old, new)

    assert {row.contender for row in found.regressions} == {"bundle/ort"}
    timed = [row for row in found.rows if row.cell.unit == "ms" and row.contender == "bundle/ort"]
    assert set(found.regressions) == set(timed)
    assert len(timed) == len(old["cells"]) + 1
    assert all(1.15 < row.ratio.low < row.ratio.ratio < row.ratio.high < 1.25 for row in timed if row.cell.stage)


def test_a_slower_rival_is_no_regression_of_ours() -> None:
    assert regressed(document(seed=1), document(seed=2, factors={"openvino": 1.5})) == set()


def test_a_machine_that_is_slower_for_everyone_is_taken_out() -> None:
    old, new = document(seed=1), document(seed=2, factors={**RIVALS, "bundle/ort": 1.2})

    found = compare(old, new)

    assert found.regressions == ()
    own = [row for row in found.rows if row.contender == "bundle/ort" and row.cell.unit == "ms" and row.cell.stage]
    assert all(row.machine == pytest.approx(1.2, abs=0.03) for row in own)
    assert all(row.new > 1.1 * row.old for row in own)


def test_a_bundle_that_stays_while_the_machine_got_faster_is_a_regression() -> None:
    faster = dict.fromkeys(RIVALS, 0.8)

    assert "latency" in regressed(document(seed=1), document(seed=2, factors=faster))


def test_without_rivals_times_are_compared_as_they_are() -> None:
    old, new = (without(each, *RIVALS) for each in (document(seed=1), document(seed=2, factors={"bundle/ort": 1.2})))

    found = compare(old, new)

    assert {row.machine for row in found.rows} == {None}
    assert found.regressions


def test_a_slowdown_within_the_tolerance_is_none() -> None:
    old, new = document(seed=1), document(seed=2, factors={"bundle/ort": 1.08})

    assert "latency" in regressed(old, new)
    assert regressed(old, new, tolerance=0.2) == set()


def test_noise_that_hides_the_slowdown_is_no_regression() -> None:
    noisy = {"scenarios": ["latency"], "noise": 1.0, "count": 5}

    assert "latency" not in regressed(document(seed=1, **noisy), document(seed=2, factors={"bundle/ort": 1.1}, **noisy))


def test_more_memory_is_a_regression_whatever_the_machine_did() -> None:
    old, new = document(seed=1), document(seed=1)
    for process in new["processes"]:
        for sample in process["samples"]:
            sample["peak_rss_bytes"] *= 1.3

    (row,) = compare(old, new).regressions

    assert (row.cell.scenario, row.cell.unit, row.machine) == ("memory", "MiB", None)


def test_what_only_one_run_has_is_listed() -> None:
    old, new = document(seed=1, batches=(1, 8)), without(document(seed=2, batches=(1,)), "openvino")

    text = compare(old, new).markdown()

    assert "only in the old run: latency classify, batch 8, 1 thread" in text
    assert "only in the old run: openvino in latency classify, batch 1, 1 thread" in text


def test_a_different_machine_is_noted() -> None:
    new = document(seed=2)
    new["environment"]["cpu"] = "another"

    assert "the runs differ in cpu: A CPU <64> & more against another" in compare(document(), new).markdown()


def test_other_instruction_sets_are_noted_and_missing_ones_are_not() -> None:
    older, wide, narrow = (document(seed=seed) for seed in (1, 2, 3))
    wide["environment"]["instruction_sets"], narrow["environment"]["instruction_sets"] = ["avx2", "fma"], ["avx2"]

    assert "the runs differ in instruction_sets: ['avx2'] against ['avx2', 'fma']" in compare(narrow, wide).markdown()
    assert "the runs differ" not in compare(older, wide).markdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "the new run is a 'calipso-bench' document of schema version 2"),
        ({"kind": "calipso-accuracy"}, "the new run is a 'calipso-accuracy' document"),
        ({"bundle": {"model": "RN50"}}, "different classifiers: model ViT-B-32 against RN50; classes"),
        (
            {"batches": (32,), "processes": []},
            "no cell in common: the old .*batch 1.* the new .*batch 32",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(document(), document(**changes))


def test_the_table_says_which_rows_regressed() -> None:
    text = compare(document(seed=1), document(seed=2, factors={"bundle/ort": 1.2})).markdown()

    lines = [line for line in text.splitlines() if "| bundle/ort |" in line and "latency" in line]
    assert lines
    assert all(line.endswith("| **regressed** |") for line in lines)
    assert "rows regressed" in text
