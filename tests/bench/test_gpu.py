"""The benchmark of GPUs: what it refuses, and on the CPU's provider that it measures what passes its gates."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu, gpu_tables

from calipso_bench.config import BenchConfig
from calipso_export.progress import silent
from calipso_export.reverify import reverify
from calipso_runtime import backends, devices
from calipso_runtime.devices import CudaDriver
from calipso_runtime.errors import BackendUnavailableError, EngineBuildError

DRIVER = devices.cuda_driver()
WHY_NO_TENSORRT = backends.why_unavailable("ort-tensorrt")
PASSES: dict[str, Any] = {"worst": {}, "failures": []}
FAILS: dict[str, Any] = {"worst": {}, "failures": ["a logit is off by .5"]}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything is written below a folder of the test's."""
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    for module in (gpu, gpu_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def gated(monkeypatch: pytest.MonkeyPatch, gates: dict[str, dict[str, Any]]) -> list[BenchConfig]:
    """Backends with the outcome of their gates. Returns what would be timed."""
    timed: list[BenchConfig] = []

    def run(config: BenchConfig, _: object) -> dict[str, Any]:
        timed.append(config)
        return {"cells": []}

    monkeypatch.setattr(gpu, "made_bundle", lambda *_: Path("a.calipso"))
    monkeypatch.setattr(gpu, "gate", lambda _, name, *__: gates[name])
    monkeypatch.setattr(gpu, "run", run)
    return timed


@pytest.mark.slow
@pytest.mark.skipif(DRIVER.problem is None, reason="this machine has a GPU")
def test_without_a_gpu_it_ends_with_one_error() -> None:
    result = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: there is no GPU to measure: {DRIVER.problem}\n"


def test_a_torch_that_does_not_use_the_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(devices, "cuda_driver", lambda: CudaDriver(version="13.0", devices=("a GPU",)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(BackendUnavailableError, match="sees no CUDA device to compare with: install its CUDA build"):
        gpu.examine()


def test_where_no_backend_comes_up_each_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(devices, "cuda_driver", lambda: CudaDriver(version="13.0", devices=("a GPU",)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "why_unavailable", lambda name: f"{name} is broken")

    with pytest.raises(
        BackendUnavailableError, match="tensorrt: tensorrt is broken; ort-cuda: ort-cuda is broken; ort-tensorrt: "
    ):
        gpu.examine()


def test_a_backend_that_fails_its_gates_is_not_timed_and_the_results_say_so(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = gated(monkeypatch, {"ort-cuda": PASSES, "ort-tensorrt": FAILS})

    document = gpu.measure("RN50", (1, 64), ("ort-cuda", "ort-tensorrt"), silent)

    assert [(config.backends, config.batches) for config in timed] == [(("ort-cuda",), (1, 64))]
    assert document["gates"]["ort-tensorrt"]["failures"] == ["a logit is off by .5"]


def test_an_engine_that_tensorrt_cannot_build_is_a_gate_that_failed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def build(_: Path, options: object, **__: object) -> None:
        asked.append(options)
        message = "TensorRT refuses"
        raise EngineBuildError(message)

    monkeypatch.setattr(gpu, "build", build)

    found = gpu.gate(work, "tensorrt", (1, 64), work, silent)

    assert found == gpu.gate(work, "tensorrt", (1, 64), work, silent) == {"worst": {}, "failures": ["TensorRT refuses"]}
    assert [[str(each) for each in options.profiles] for options in asked] == [["1,1,1", "64,64,64"]]


def test_where_none_passes_nothing_is_timed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = gated(monkeypatch, {"ort-cuda": FAILS})

    with pytest.raises(BackendUnavailableError, match=r"RN50: no backend passes .*ort-cuda: a logit is off by \.5"):
        gpu.measure("RN50", (1,), ("ort-cuda",), silent)
    assert timed == []


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_it_gates_times_and_tabulates_what_it_is_given(
    work: Path, exported: Path, exported_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "made_bundle", lambda *_: exported)
    # Edge cases are enough, and the model is one of a file.
    changes = {"data": None, "model": str(exported_model)}
    monkeypatch.setattr(gpu, "reverify", lambda bundle, **more: reverify(bundle, **{**more, **changes}))
    monkeypatch.setattr(gpu, "AGAINST", ())
    monkeypatch.setattr(gpu, "SECONDS", 0.05)
    begin = gpu.begin

    def begin_with_pictures() -> None:
        begin()
        (gpu.WORK / "tiny").mkdir()

    monkeypatch.setattr(gpu, "begin", begin_with_pictures)

    path = gpu.measure_all(["tiny"], (1, 8), "NVIDIA H100 80GB HBM3", ("ort",), silent)

    (model,) = json.loads(path.read_text())["models"]
    assert path.name == "gpu-nvidia-h100-80gb-hbm3.json"
    assert model["gates"]["ort"]["failures"] == []
    assert {(cell["scenario"], cell["batch"]) for cell in model["cells"]} == {
        (scenario, batch) for scenario in ("latency", "throughput") for batch in (1, 8)
    }
    table = gpu_tables.gpu_table()
    assert table.startswith("NVIDIA H100 80GB HBM3, torch ")
    assert table.count(" | ort | ") == 2
    assert not gpu.WORK.exists()


def test_without_results_the_table_says_that_nothing_was_measured(work: Path) -> None:
    assert gpu_tables.gpu_table() == "Not measured: there is no `benchmarks/results/gpu-*.json` yet.\n"


def on_a_gpu(work: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The smallest real measurement."""
    monkeypatch.setattr(sys, "argv", ["gpu", "--models", "ViT-B-32", "--batches", "1,8"])
    monkeypatch.setattr(gpu, "SECONDS", 0.5)

    assert gpu.main() == 0

    (path,) = work.glob("gpu-*.json")
    (model,) = json.loads(path.read_text())["models"]
    return dict(model)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(DRIVER.problem is not None, reason=str(DRIVER.problem))
def test_on_a_gpu_cuda_is_timed_against_eager_and_compile(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_a_gpu(work, monkeypatch)

    assert model["gates"]["ort-cuda"]["failures"] == []
    for cell in model["cells"]:
        assert {"eager-fp16", "compile-fp16", "bundle/ort-cuda"} <= set(cell["samples_ms"])


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.skipif(WHY_NO_TENSORRT is not None, reason=str(WHY_NO_TENSORRT))
def test_on_a_gpu_onnx_runtimes_tensorrt_is_timed_too(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_a_gpu(work, monkeypatch)

    assert model["gates"]["ort-tensorrt"]["failures"] == []
    assert all("bundle/ort-tensorrt" in cell["samples_ms"] for cell in model["cells"])
