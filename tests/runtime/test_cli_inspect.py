"""`calipso inspect` and `calipso doctor`: readable for people, whole as JSON."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from runtime_samples import LABELS, MakeBundle, tiny_manifest

import calipso_runtime
from calipso_runtime import devices
from calipso_runtime.backends import ort
from calipso_runtime.cli import calipso
from calipso_runtime.devices import CudaDriver

Output = Callable[..., str]


@pytest.fixture
def output() -> Output:
    def answer(*arguments: object) -> str:
        result = CliRunner().invoke(calipso, [str(part) for part in arguments], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stdout

    return answer


def test_inspect_as_json_is_the_manifest(output: Output, tiny: Path) -> None:
    assert json.loads(output("inspect", tiny, "--json")) == calipso_runtime.load(tiny).manifest.as_json()


def test_inspect_reads_a_bare_graph(output: Output, tiny: Path) -> None:
    document = json.loads(output("inspect", tiny / "model.onnx", "--json"))

    assert document["labels"] == list(LABELS)
    assert (document["parity"], document["files"]) == ("unknown", {})


def test_inspect_tells_everything_that_matters(output: Output, tiny: Path) -> None:
    told = output("inspect", tiny)

    for part in (
        "name=tiny, family=vit, embed_dim=5",
        f"7: {', '.join(LABELS)}",
        "used=True, alpha=1.0, beta=1e-05",
        "used=False, reason=switched off",
        "size=[16, 16]",
        "resize_mode=shortest",
        "opset=18",
        "parity",
        "passed",
        "model.onnx",
        "KiB  sha256 ",
    ):
        assert part in told


def test_inspect_makes_random_weights_plain(output: Output, make_bundle: MakeBundle, tiny: Path) -> None:
    trained = make_bundle(model={"name": "tiny", "weights": {"source": "openai"}})

    assert "RANDOM: these weights were never trained" in output("inspect", tiny)
    assert "RANDOM" not in output("inspect", trained)


def test_inspect_shortens_prompts_per_class(output: Output, make_bundle: MakeBundle) -> None:
    prompts = {"per_class": {f"class {number}": [f"a class {number}"] for number in range(1000)}}

    told = output("inspect", make_bundle(prompts=prompts))

    assert "class 11=[a class 11], ..." in told
    assert "class 12=" not in told


def test_inspect_shortens_a_long_list_of_labels(output: Output, make_bundle: MakeBundle) -> None:
    labels = tuple(f"class {number}" for number in range(1000))

    told = output("inspect", make_bundle(labels=labels))

    assert "1000: class 0, class 1," in told
    assert "class 9, ..." in told
    assert "class 10" not in told


def test_inspect_shows_labels_as_they_are(output: Output, make_bundle: MakeBundle) -> None:
    assert "[red]fox[/red], :cat:, [/]" in output("inspect", make_bundle(labels=("[red]fox[/red]", ":cat:", "[/]")))


def test_inspect_refuses_an_edited_bundle(own: Path) -> None:
    (own / "model.onnx").write_bytes(b"x")

    assert CliRunner().invoke(calipso, ["inspect", str(own)]).exit_code == 1


def test_doctor_tells_that_the_cpu_works(output: Output) -> None:
    report = json.loads(output("doctor", "--json"))

    providers = {provider["name"]: provider for provider in report["providers"]}
    assert providers["CPUExecutionProvider"]["works"] is True
    assert report["onnxruntime"] == ort.version()
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["packages"]["numpy"]
    assert report["cpu_count"] >= 1
    assert report["instruction_sets"] == list(devices.instruction_sets())
    assert report["memory_bytes"] is None or report["memory_bytes"] > 1 << 28


def test_doctor_tells_a_listed_provider_that_does_not_come_up(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_driver", lambda: CudaDriver(problem="no NVIDIA driver"))
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: [ort.CUDA_PROVIDER, ort.CPU_PROVIDER])

    told = output("doctor")

    assert re.search("CUDAExecutionProvider +does not work: CUDAExecutionProvider needs a CUDA device: no NVIDIA", told)
    assert re.search("CPUExecutionProvider +works: a session runs on it", told)


def test_doctor_names_the_compiler_that_needs_no_gpu(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tensorrt-rtx-cu13": "1.7.1.116"}

    def version(*names: str) -> str | None:
        return next((versions[name] for name in names if name in versions), None)

    monkeypatch.setattr("calipso_runtime.doctor.installed_version", version)

    assert json.loads(output("doctor", "--json"))["tensorrt_rtx"] == "1.7.1.116"
    assert re.search(r"TensorRT for RTX +1\.7\.1\.116", output("doctor"))


def test_doctor_names_the_devices(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_driver", lambda: CudaDriver(version="12.8", devices=("GPU one", "GPU two")))

    assert "CUDA 12.8: GPU one, GPU two" in output("doctor")


@pytest.mark.parametrize(("flags", "told"), [("fpu avx2 avx", "avx, avx2"), ("", "unknown")])
def test_doctor_names_the_instruction_sets(
    output: Output, monkeypatch: pytest.MonkeyPatch, flags: str, told: str
) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: flags)

    (line,) = [line for line in output("doctor").splitlines() if "instructions" in line]
    assert line.split(maxsplit=1)[1].strip() == told


def test_doctor_says_which_extra_brings_what_is_missing() -> None:
    code = """
import sys
for name in ("onnxruntime", "openvino", "tensorrt"): sys.modules[name] = None
import importlib.util, importlib.metadata
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
from calipso_runtime.cli import calipso
calipso(["doctor"])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"COLUMNS": "200", **_path()}
    )

    assert result.returncode == 0, result.stderr
    assert "pip install 'calipso[ort]'" in result.stdout
    assert "missing torch" in result.stdout
    assert "pip install 'calipso[export]'" in result.stdout


def test_doctor_imports_neither_torch_nor_tensorrt() -> None:
    code = """
import sys
from calipso_runtime.doctor import examine
examine()
print(sorted({"torch", "open_clip", "tensorrt", "onnx"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.stdout == "[]\n"


def test_tiny_manifest_is_the_one_that_is_shown(tiny: Path) -> None:
    assert calipso_runtime.load(tiny).manifest.core() == tiny_manifest().core()


def _path() -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in ("PYTHONPATH", "PATH", "HOME") if name in os.environ}
