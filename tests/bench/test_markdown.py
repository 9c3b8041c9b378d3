"""The tables, out of raw samples."""

from typing import Any

import pytest
from bench_samples import ABOUT, new_record

from calipso_bench.markdown import images_per_second, markdown, percent_of_peak


@pytest.fixture
def document() -> dict[str, Any]:
    """Two contenders in one cell, a third that was not there."""
    bundle = {"model": "ViT-B-32", "weights": "random", "classes": 10, "keys": 20}
    bundle |= {"calip": True, "tip_adapter": True}
    record = new_record(bundle={**bundle, "precision": "fp32"}, environment={**ABOUT["environment"], "gpu": None})
    found = record.document
    found["finished"] = True
    found["machine"]["2"] = {"matmul_gflops": 100.0}
    found["work"] = {"flops_per_image": 4_000_000_000, "encoder_flops_per_image": 3_000_000_000}
    for name in ("eager", "bundle/ort"):
        record.contender(name).update(about=f"{name} in words", device="cpu", setup_s={"2": 1.25})
        found["verification"][name] = {
            "against": "eager",
            "relative_logit_error": 2e-6,
            "top1_agreement": 1.0,
            "passed": True,
            "failures": [],
        }
    record.contender("compile").update(available=False, reason="torch cannot be imported")
    samples = {"eager": [100.0, 101.0, 99.0] * 10, "bundle/ort": [50.0, 50.5, 49.5] * 10}
    cell: dict[str, Any] = {"scenario": "latency", "stage": "classify", "batch": 1, "threads": 2, "device_ms": None}
    cell["samples_ms"] = samples
    found["cells"].append(cell)
    return found


def test_the_title_names_the_instruction_sets_where_they_were_recorded(document: dict[str, Any]) -> None:
    older = markdown(document)
    document["environment"]["instruction_sets"] = ["avx2", "fma"]

    assert "; on a CPU, 2 cores. " in older
    assert "; on a CPU (avx2, fma), 2 cores. " in markdown(document)


def test_rows_are_fastest_first_with_their_ratio_to_eager(document: dict[str, Any]) -> None:
    text = markdown(document)

    rows = [line for line in text.splitlines() if "| classify |" in line]
    assert rows[0].startswith("| bundle/ort | classify | 1 | 2 | 50 | 50.5 | 50.5 | 50.5 | 0.8% | 0.500 | 0.4")
    assert rows[1].startswith("| eager | classify | 1 | 2 | 100 |")
    assert rows[0].endswith("| 80% |")


def test_random_weights_and_made_up_pictures_are_said(document: dict[str, Any]) -> None:
    first = markdown(document).splitlines()[0]

    assert first == (
        "ViT-B-32, 10 classes, 20 keys, CALIP, fp32, RANDOM weights; on a CPU, 2 cores. Pictures: made-up."
    )


def test_one_that_could_not_run_stands_in_the_table_with_its_reason(document: dict[str, Any]) -> None:
    assert "| compile | not run: torch cannot be imported | - | - | - |" in markdown(document)


def test_one_that_failed_its_verification_is_said_not_to_be_timed(document: dict[str, Any]) -> None:
    document["verification"]["eager"] |= {"passed": False, "failures": ["off by 2"]}

    assert "eager in words; NOT TIMED, off by 2" in markdown(document)


def test_an_unfinished_run_says_so(document: dict[str, Any]) -> None:
    document["finished"] = False

    assert "This run is not finished: cells are missing." in markdown(document)


def test_unstable_samples_are_marked_with_the_next_command(document: dict[str, Any]) -> None:
    document["cells"][0]["samples_ms"]["eager"] = [100.0, 200.0] * 10

    text = markdown(document)

    assert "35.1%!" not in text.splitlines()[0]
    assert "unstable (coefficient of variation above 10%, marked !): eager. Measure again with --seconds 2" in text


def test_throughput_is_the_timed_images_over_their_own_time() -> None:
    cell = {"batch": 8, "samples_ms": {"eager": [100.0, 300.0]}}

    assert images_per_second(cell, "eager") == 40.0


def test_the_share_of_the_peak_is_unknown_where_something_is(document: dict[str, Any]) -> None:
    cell = document["cells"][0]

    assert percent_of_peak(document, cell, 50.0) == pytest.approx(0.8)
    assert percent_of_peak(document, {**cell, "stage": "encode"}, 50.0) == pytest.approx(0.6)
    assert percent_of_peak(document, {**cell, "stage": "end-to-end"}, 50.0) is None
    assert percent_of_peak(document, {**cell, "threads": 4}, 50.0) is None
    assert percent_of_peak({**document, "work": None}, cell, 50.0) is None


def test_the_devices_own_time_has_a_column_where_an_engine_tells_it(document: dict[str, Any]) -> None:
    document["cells"][0]["device_ms"] = {"eager": [90.0, 92.0]}

    rows = [line for line in markdown(document).splitlines() if "| classify |" in line]

    assert [row.split(" | ")[-1] for row in rows] == ["- |", "91 |"]


def test_what_runs_on_a_gpu_has_no_share_of_the_cpus_peak(document: dict[str, Any]) -> None:
    document["contenders"][0]["device"] = "cuda"

    rows = [line for line in markdown(document).splitlines() if line.startswith("| eager | classify")]

    assert rows[0].endswith("| - |")
