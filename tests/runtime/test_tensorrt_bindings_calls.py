"""Our engine code runs through the real bindings of each version of TensorRT, on stand-ins of the libraries.

What a GPU would do, ONNX Runtime does: that the answers are right says that nothing got lost on the way, not that an
engine of TensorRT's is right, or fast.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_samples import reference_logits
from stand_ins import names
from stand_ins.bindings import RUNTIME, STAND_INS, Bindings, engine_sources

pytestmark = [pytest.mark.network, pytest.mark.slow]

DRIVER = STAND_INS / "drive_engine.py"
# How the driver builds, and which of TensorRT's flags have to be set for it.
FLAGS = {
    "plain": [],
    "large": ["TF32", "WEIGHT_STREAMING"],
    "anywhere": ["EXCLUDE_LEAN_RUNTIME", "VERSION_COMPATIBLE"],
    "stripped": ["REFIT_IDENTICAL", "STRIP_PLAN"],
    "dla": ["GPU_FALLBACK"],
}
REFUSALS = {
    "stopped": "CalipsoError: stopped by its report",
    "parse": "EngineBuildError: TensorRT {version} cannot read .*: node tower/Strange",
    "build": "EngineBuildError: TensorRT {version} could not build an engine from .* was told that build fails",
    "deserialize": "BackendUnavailableError: TensorRT {version} does not take .* was told that deserialize fails",
    "refit": "BackendError: the weights of .* do not go into .* was told that refit fails",
}
# One that comes again is captured, and then launched; 40 are more than any of the engines takes at once.
BATCHES = (1, 1, 1, 2, 7, 40)


@pytest.fixture(scope="module")
def folder(tensorrt_bindings: Bindings, checkable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for each way to build, one for builds that fail, and what is to be classified."""
    folder = tmp_path_factory.mktemp(f"built-{tensorrt_bindings.version}")
    for name in (*FLAGS, "refused"):
        shutil.copytree(checkable, folder / name)
    rng = np.random.default_rng(0)
    images = [rng.uniform(-1, 1, (batch, 3, 16, 16)).astype(np.float32) for batch in BATCHES]
    np.savez(folder / "images.npz", **{str(place): image for place, image in enumerate(images)})
    return folder


@pytest.fixture(scope="module")
def built(tensorrt_bindings: Bindings, folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(tensorrt_bindings.python(DRIVER, "build", folder, path=(STAND_INS.parent,)))
    return seen


@pytest.fixture(scope="module")
def ran(tensorrt_bindings: Bindings, built: dict[str, Any], folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(tensorrt_bindings.python(DRIVER, "run", folder, path=(STAND_INS.parent,)))
    return seen


@pytest.mark.parametrize("way", FLAGS)
def test_an_engine_is_built_and_checked(
    built: dict[str, Any], tensorrt_bindings: Bindings, folder: Path, way: str
) -> None:
    (plan,) = (folder / way / "engines").glob("*.plan")

    assert plan.name.startswith(f"sm90-{tensorrt_bindings.version}-")
    assert built[way] == {
        "flags": FLAGS[way],
        "phases": ["Building Engine", "checking the engine", "timing"],
        "warnings": ["a warning of the builder"],
        "failures": [],
        "parity": "passed",
    }


@pytest.mark.parametrize("way", FLAGS)
def test_another_process_runs_the_engine(ran: dict[str, Any], folder: Path, way: str) -> None:
    images, answers = np.load(folder / "images.npz"), np.load(folder / way / "answers.npz")

    assert ran[way] == [
        ["image", [None, 3, 16, 16], "float32"],
        ["logits", [None, 7], "float32"],
        ["embedding", [None, 5], "float32"],
    ]
    for key in images:
        np.testing.assert_allclose(answers[key], reference_logits(images[key]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("call", REFUSALS)
def test_a_refusal_comes_out_with_what_the_log_says(
    built: dict[str, Any], tensorrt_bindings: Bindings, folder: Path, call: str
) -> None:
    assert re.match(REFUSALS[call].format(version=re.escape(tensorrt_bindings.version)), built[call])
    assert not (folder / "refused" / "engines").exists()


def test_each_misspelt_keyword_of_our_engine_code_is_refused(
    tensorrt_bindings: Bindings, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(RUNTIME / "calipso_runtime", tmp_path / "calipso_runtime")
    description, refused = tensorrt_bindings.describe(), 0
    for path in engine_sources(tmp_path):
        code = path.read_text(encoding="utf-8")
        for keyword in names.judged_keywords(path, description):
            path.write_text(names.misspelt(code, keyword), encoding="utf-8")
            result = tensorrt_bindings.run(DRIVER, "build", folder, path=(tmp_path, STAND_INS.parent))
            refused += 1

            assert result.returncode == 1
            assert "incompatible function arguments" in result.stderr
            assert f"misspelt_{keyword.arg}" in result.stderr
        path.write_text(code, encoding="utf-8")

    assert refused


def test_a_crash_in_the_bindings_is_a_failed_test_and_says_where(tensorrt_bindings: Bindings) -> None:
    with pytest.raises(AssertionError, match=r"exit -11\n(.|\n)*Fatal Python error: Segmentation fault"):
        tensorrt_bindings.python("-c", "import ctypes; ctypes.string_at(0)")
