"""Engines that were compiled without a GPU: their answers are compared when a GPU first runs them, and recorded."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from gpu import Gpu
from rtx_plans import UNVERIFIED, write_rtx_plan

import calipso_runtime
from calipso_runtime import GpuOptions, devices
from calipso_runtime.cli import calipso
from calipso_runtime.engines import first_load
from calipso_runtime.engines.options import BatchRange
from calipso_runtime.errors import BackendUnavailableError, CalipsoWarning

RTX = "tensorrt-rtx"
SMALL = (BatchRange(least=1, best=2, most=4),)


@pytest.fixture
def family() -> str:
    return RTX


@pytest.fixture
def compiled(gpu: Gpu, checkable: Path, tmp_path: Path) -> Path:
    """A bundle with a reference, and an engine that no GPU has run."""
    path = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    write_rtx_plan(gpu, path, profiles=SMALL, checks=UNVERIFIED)
    return path


def load(path: Path, **options: object) -> None:
    calipso_runtime.load(path, backend=RTX, **options).close()


def outcomes(path: Path) -> list[Path]:
    return sorted((path / "engines").glob("*.verified"))


def runs(machine: Gpu, path: Path, **options: object) -> bool:
    """Whether a load runs the engine."""
    before = machine.faults.executed
    load(path, **options)
    return machine.faults.executed > before


def test_the_first_load_compares_and_records_and_later_ones_trust_the_record(compiled: Path, gpu: Gpu) -> None:
    assert runs(gpu, compiled)

    (outcome,) = outcomes(compiled)
    (plan,) = (compiled / "engines").glob("*.plan")
    document = json.loads(outcome.read_text())
    assert outcome.name.startswith(f"{plan.stem}.")
    assert (document["gpu"], document["library"], document["failures"]) == (
        "Stand-in GPU",
        "TensorRT for RTX 1.7.1",
        [],
    )
    assert document["worst"]["relative_logit_error"] < 1e-4
    assert not runs(gpu, compiled)
    assert not list((compiled / "engines").glob("*.partial"))


def test_the_ends_of_every_profile_are_asked(compiled: Path, gpu: Gpu) -> None:
    load(compiled, keep_optimised=False)

    assert sorted(gpu.faults.compiled) == [1, 2, 4]


def test_an_engine_that_fails_is_refused_with_the_numbers_and_the_command(compiled: Path, gpu: Gpu) -> None:
    gpu.faults.distort = 1.5
    expected = (
        r"does not answer like eager PyTorch on Stand-in GPU and is not used: batch 1: relative logit error 6\.00e-01 "
        r"on <black>, allowed is 1e-04.*\. Build it again: calipso build .* --engine tensorrt-rtx --capability sm90; or"
    )

    with pytest.raises(BackendUnavailableError, match=expected):
        load(compiled)

    assert gpu.held == {}
    # The next load does not even deserialise it.
    gpu.faults.destroyed.clear()
    with pytest.raises(BackendUnavailableError, match=expected):
        load(compiled)
    assert gpu.faults.destroyed == []


def test_auto_goes_on_to_the_next_backend_and_says_why(compiled: Path, gpu: Gpu) -> None:
    gpu.faults.distort = 1.5

    with calipso_runtime.load(compiled) as classifier:
        assert classifier.backend == "ort"
        assert "does not answer like eager PyTorch on Stand-in GPU" in classifier.backend_reason


@pytest.mark.parametrize("change", ["driver", "version", "plan"])
def test_the_record_is_trusted_only_for_the_same_plan_driver_and_version(
    compiled: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    load(compiled)
    if change == "driver":
        monkeypatch.setattr(devices, "driver_release", lambda: "580.82.07")
    elif change == "version":
        gpu.tensorrt.__version__ = "1.7.2"
        write_rtx_plan(gpu, compiled, profiles=SMALL, checks=UNVERIFIED)
    else:
        write_rtx_plan(gpu, compiled, profiles=SMALL, checks=UNVERIFIED)

    assert runs(gpu, compiled)

    # What is known of a plan goes with it.
    assert len(outcomes(compiled)) == (1 if change == "plan" else 2)


def test_a_record_of_another_gpu_is_not_trusted(compiled: Path, gpu: Gpu) -> None:
    load(compiled)
    (outcome,) = outcomes(compiled)
    document = json.loads(outcome.read_text())
    document["gpu"] = "Another GPU"
    document["sha256"] = first_load._digest({key: document[key] for key in document if key != "sha256"})
    outcome.write_text(json.dumps(document))

    assert runs(gpu, compiled)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 1', "edited"])
def test_a_damaged_record_is_made_again(compiled: Path, gpu: Gpu, content: str) -> None:
    load(compiled)
    (outcome,) = outcomes(compiled)
    whole = outcome.read_text()
    outcome.write_text(whole.replace('"failures": []', '"failures": ["x"]') if content == "edited" else content)

    assert runs(gpu, compiled)
    assert outcome.read_text() == whole


def test_where_the_record_cannot_be_written_the_engine_runs_with_a_warning(
    compiled: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(first_load, "write_file", refuse)

    with pytest.warns(CalipsoWarning, match=r"cannot be written \(Read-only file system\): they are compared again"):
        assert runs(gpu, compiled)


def test_a_bundle_without_a_reference_warns_that_nothing_was_compared(own: Path, gpu: Gpu) -> None:
    write_rtx_plan(gpu, own, profiles=SMALL, checks=UNVERIFIED)

    with pytest.warns(CalipsoWarning, match="are unverified: .* carries none to compare with"):
        load(own)

    assert outcomes(own) == []


def test_an_interrupted_comparison_leaves_no_record_and_holds_nothing(
    compiled: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(first_load, "verify_engine", interrupt)

    with pytest.raises(KeyboardInterrupt):
        load(compiled)

    assert (outcomes(compiled), gpu.held) == ([], {})


def test_an_engine_that_was_checked_when_it_was_built_is_not_checked_again(
    gpu: Gpu, checkable: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    write_rtx_plan(gpu, path, profiles=SMALL)

    assert not runs(gpu, path)


def test_the_comparison_can_be_left_out(compiled: Path, gpu: Gpu) -> None:
    assert not runs(gpu, compiled, gpu=GpuOptions(first_check=False))


def test_check_measures_an_engine_that_failed_its_first_check(compiled: Path, gpu: Gpu) -> None:
    gpu.faults.distort = 1.5
    with pytest.raises(BackendUnavailableError):
        load(compiled)

    result = CliRunner().invoke(calipso, ["check", str(compiled), "--backend", RTX, "--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "failed"
    assert "tensorrt-rtx does not answer like eager PyTorch" in result.stderr
