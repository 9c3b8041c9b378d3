"""What a measurement was taken on."""

import json
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from calipso_bench import environment
from calipso_runtime import devices
from calipso_runtime.devices import CudaDriver


class NvmlError(Exception):
    pass


def fake_nvml(**changes: Any) -> types.ModuleType:
    """NVML of a machine with one GPU, which does not tell its temperature."""

    def refuse(*_: object) -> None:
        raise NvmlError

    module: Any = types.ModuleType("pynvml")
    module.NVMLError = NvmlError
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _: "a GPU",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetPowerUsage": lambda _: 70_500,
        "nvmlDeviceGetTemperature": refuse,
        "nvmlDeviceGetClockInfo": lambda _, kind: 1000 * kind,
        "nvmlDeviceGetMaxClockInfo": lambda *_: 1980,
    }
    for name, answer in {**answers, **changes}.items():
        setattr(module, name, answer)
    return module


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cuda_driver", lambda: CudaDriver(version="13.0", devices=("a GPU",)))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())


def test_the_environment_is_json_and_names_no_machine() -> None:
    found = environment.environment()

    text = json.dumps(found)
    assert found["cpu"]
    assert found["instruction_sets"] == list(devices.instruction_sets())
    assert found["cores"] >= 1
    assert found["packages"]["numpy"]
    assert socket.gethostname() not in text


def test_thread_settings_of_the_process_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    assert environment.environment()["threads"]["OMP_NUM_THREADS"] == "3"


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cuda_driver", lambda: CudaDriver(problem="no driver"))

    assert environment.gpu() is None
    assert environment.gpu_load() is None


def test_without_nvml_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert environment.gpu() is None


def test_a_gpu_is_told_with_driver_power_and_clocks(with_gpu: None) -> None:
    assert environment.gpu() == {
        "name": "a GPU",
        "driver": "580.1",
        "power_w": 70.5,
        "temperature_c": None,
        "clocks": {"sm_mhz": 1000, "memory_mhz": 2000, "max_sm_mhz": 1980},
    }


def test_nvml_that_does_not_start_is_no_gpu(with_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NvmlError

    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=refuse))

    assert environment.gpu() is None


def test_an_installed_package_has_no_commit() -> None:
    assert environment.commit(Path("/usr/lib/python3/site-packages/calipso_bench")) is None


def test_a_folder_outside_a_checkout_has_no_commit(tmp_path: Path) -> None:
    assert environment.commit(tmp_path) is None


@pytest.mark.parametrize(
    ("changed", "is_dirty"), [("benchmarks/results/speed.json", False), ("benchmarks/speed.py", True)]
)
def test_what_changes_a_commit_is_code_and_not_results(tmp_path: Path, changed: str, *, is_dirty: bool) -> None:
    for name in ("benchmarks/results/speed.json", "benchmarks/speed.py", "bench/package/module.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = environment.commit(tmp_path / "bench/package")

    (tmp_path / changed).write_text("2\n")

    assert clean is not None
    assert environment.commit(tmp_path / "bench/package") == clean + ("-dirty" if is_dirty else "")


def test_the_commit_is_a_hash_or_unknown() -> None:
    found = environment.commit()

    assert found is None or len(found.removesuffix("-dirty")) == 40
