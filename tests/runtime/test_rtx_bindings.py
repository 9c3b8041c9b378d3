"""Our code for TensorRT for RTX against the real bindings of each of its releases, in three ways.

Names and signatures, types for mypy, and calls through the real bindings on stand-ins of the libraries. That these
checks find mistakes is tested with TensorRT's bindings: test_tensorrt_bindings_*.py. ONNX Runtime stands for the GPU.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_samples import reference_logits
from stand_ins import names, stubs
from stand_ins.bindings import RTX, RUNTIME, STAND_INS, Bindings, engine_sources
from stand_ins.names import Description

pytestmark = [pytest.mark.network, pytest.mark.slow]

DRIVER = STAND_INS / "drive_rtx.py"
# One that comes again is captured, and then launched; 40 are more than any of the engines takes at once.
BATCHES = (1, 1, 1, 2, 7, 40)
FLAGS = {"plain": [], "large": ["TF32", "WEIGHT_STREAMING"]}
TENSORS = [
    ["image", [None, 3, 16, 16], "float32"],
    ["logits", [None, 7], "float32"],
    ["embedding", [None, 5], "float32"],
]
REFUSALS = {
    "stopped": "CalipsoError: stopped by its report",
    "parse": "EngineBuildError: TensorRT for RTX {version} cannot read .*: node tower/Strange",
    "build": "EngineBuildError: TensorRT for RTX {version} could not build .* for sm89, sm120: .*told that build fails",
    "deserialize": "BackendUnavailableError: TensorRT for RTX {version} does not take .*told that deserialize fails",
}
CONFIGURATION = """
[mypy]
strict = True
warn_unused_ignores = False
explicit_package_bases = True
[mypy-tensorrt.*]
ignore_errors = True
"""


@pytest.fixture(scope="module")
def description(rtx_bindings: Bindings) -> Description:
    return rtx_bindings.describe()


def test_the_real_module_is_described(rtx_bindings: Bindings, description: Description) -> None:
    version = rtx_bindings.python("-c", "import tensorrt_rtx; print(tensorrt_rtx.__version__)").strip()

    assert version == rtx_bindings.version
    assert description["IRuntimeCache.deserialize"] == [[["blob", True]]]
    assert ("ComputeCapability.SM121" in description) == (version != "1.4.0.76")


def test_our_engine_code_uses_no_name_or_keyword_that_is_not_there(description: Description) -> None:
    sources = engine_sources(family=RTX)

    assert {"builder.py", "engine.py", "network.py"} <= {source.name for source in sources}
    assert [finding for source in sources for finding in names.findings(source, description)] == []


def test_a_name_of_its_own_that_is_misspelt_is_found(description: Description, tmp_path: Path) -> None:
    (source,) = [each for each in engine_sources(family=RTX) if each.parts[-2:] == ("runtime", "engine.py")]
    code = source.read_text(encoding="utf-8")
    for right in ("CudaGraphStrategy.DISABLED", "DynamicShapesKernelSpecializationStrategy.EAGER"):
        assert right in code
        path = tmp_path / "engine.py"
        path.write_text(code.replace(right, f"{right}LY"), encoding="utf-8")

        (finding,) = names.findings(path, description)
        assert f"{right}LY is not in this version" in finding


def test_our_engine_code_has_the_types_of_this_version(rtx_bindings: Bindings, tmp_path: Path) -> None:
    pytest.importorskip("pybind11_stubgen", reason="generates the stubs of TensorRT for RTX")
    pytest.importorskip("mypy", reason="checks the types")
    stubs.write(rtx_bindings, tmp_path)
    right = engine_sources(family=RTX)
    (source,) = [each for each in right if each.parts[-2:] == ("runtime", "engine.py")]
    wrong = tmp_path / "wrong.py"
    calls = ("cache.deserialize(content)", "cache.deserialize(len(content))")
    wrong.write_text(source.read_text(encoding="utf-8").replace(*calls), encoding="utf-8")
    configuration = tmp_path / "mypy.ini"
    configuration.write_text(CONFIGURATION, encoding="utf-8")

    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", configuration, "--cache-dir", tmp_path, *right, wrong],
        env={**os.environ, "MYPYPATH": os.pathsep.join(map(str, (tmp_path, RUNTIME)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    (error,) = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert error.startswith("wrong.py")
    assert 'Argument 1 to "deserialize" of "IRuntimeCache" has incompatible type "int"' in error


@pytest.fixture(scope="module")
def folder(rtx_bindings: Bindings, checkable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for each way to build, and what is to be classified."""
    folder = tmp_path_factory.mktemp(f"rtx-{rtx_bindings.version}")
    for name in FLAGS:
        shutil.copytree(checkable, folder / name)
    rng = np.random.default_rng(0)
    images = [rng.uniform(-1, 1, (batch, 3, 16, 16)).astype(np.float32) for batch in BATCHES]
    np.savez(folder / "images.npz", **{str(place): image for place, image in enumerate(images)})
    return folder


@pytest.fixture(scope="module")
def built(rtx_bindings: Bindings, folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(rtx_bindings.python(DRIVER, "build", folder, path=(STAND_INS.parent,)))
    return seen


@pytest.mark.parametrize("way", FLAGS)
def test_an_engine_is_compiled(built: dict[str, Any], rtx_bindings: Bindings, folder: Path, way: str) -> None:
    (plan,) = (folder / way / "engines").glob("*.plan")

    assert plan.name.startswith(f"rtx-sm90-{rtx_bindings.version}-")
    assert built[way] == {
        "flags": FLAGS[way],
        "phases": ["Building Engine"],
        "warnings": ["a warning of the builder"],
        "tensors": TENSORS,
    }


@pytest.mark.parametrize("call", REFUSALS)
def test_a_refusal_comes_out_with_what_the_log_says(built: dict[str, Any], rtx_bindings: Bindings, call: str) -> None:
    assert re.match(REFUSALS[call].format(version=re.escape(rtx_bindings.version)), built[call])


def test_another_process_runs_the_engines_and_keeps_their_kernels(
    rtx_bindings: Bindings, built: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    ran = json.loads(rtx_bindings.python(DRIVER, "run", folder, path=(STAND_INS.parent,), CALIPSO_CACHE=cache))

    images = np.load(folder / "images.npz")
    for way in FLAGS:
        answers = np.load(folder / way / "answers.npz")
        for key in images:
            np.testing.assert_allclose(answers[key], reference_logits(images[key]), rtol=1e-4, atol=1e-4)
        # 40 come as two parts of 20; what was compiled first is taken from the cache then.
        assert ran[f"{way} first"]["tensors"] == TENSORS
        assert {1, 2, 7, 20} == set(ran["plain first"]["compiled"])
        assert ran[f"{way} again"]["compiled"] == []
