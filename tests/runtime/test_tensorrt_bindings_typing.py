"""mypy --strict takes our engine code with the types of each version of TensorRT's bindings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins import names, stubs
from stand_ins.bindings import RUNTIME, SAMPLE, Bindings, engine_sources

pytest.importorskip("pybind11_stubgen", reason="generates the stubs of TensorRT")
pytest.importorskip("mypy", reason="checks the types")
pytestmark = [pytest.mark.network, pytest.mark.slow]

# An `ignore` that the ordinary check needs, where tensorrt is unknown, is unused here.
CONFIGURATION = """
[mypy]
strict = True
warn_unused_ignores = False
explicit_package_bases = True
[mypy-tensorrt.*]
ignore_errors = True
"""
WRONG = {
    "a keyword": ("ignore_mismatch=False", "ignore=False", 'Unexpected keyword argument "ignore"'),
    "a type": ("1 << 28)", '"256M")', 'incompatible type "str"; expected "int"'),
    "a member of an enum": ("trt.BuilderFlag.REFIT", "trt.BuilderFlag.REFITTING", 'has no attribute "REFITTING"'),
    "a result that may be missing": ("return bytes(plan)", "return plan", 'expected "bytes"'),
    "what TensorRT calls": ("step: int) -> bool:", "step: str) -> bool:", "incompatible with supertype"),
}


@pytest.fixture(scope="module")
def stub_folder(tensorrt_bindings: Bindings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"stubs-{tensorrt_bindings.version}")
    stubs.write(tensorrt_bindings, folder)
    return folder


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of mypy: for all versions, for numpy is the same in all of them."""
    return tmp_path_factory.mktemp("mypy")


def mypy(stub_folder: Path, cache: Path, *sources: Path, runtime: Path = RUNTIME) -> list[str]:
    """Errors, each with its place."""
    configuration = cache / "mypy.ini"
    configuration.write_text(CONFIGURATION, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", configuration, "--cache-dir", cache, *sources]
    result = subprocess.run(
        [*map(str, command), "--no-error-summary", "--hide-error-context"],
        env={**os.environ, "MYPYPATH": os.pathsep.join(map(str, (stub_folder, runtime)))},
        cwd=cache,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert result.returncode == bool(lines), result.stdout + result.stderr
    return lines


def test_our_engine_code_has_the_types_of_this_version(stub_folder: Path, mypy_cache: Path) -> None:
    sources = engine_sources()

    assert sources
    assert mypy(stub_folder, mypy_cache, *sources) == []


def test_each_keyword_of_our_engine_code_is_found_when_misspelt(
    tensorrt_bindings: Bindings, stub_folder: Path, mypy_cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(RUNTIME / "calipso_runtime", tmp_path / "calipso_runtime")
    description, places = tensorrt_bindings.describe(), []
    for path in engine_sources(tmp_path):
        for keyword in names.judged_keywords(path, description):
            path.write_text(names.misspelt(path.read_text(encoding="utf-8"), keyword), encoding="utf-8")
            places.append(f"{path.name}:{keyword.lineno}")

    errors = mypy(stub_folder, mypy_cache, *engine_sources(tmp_path), runtime=tmp_path)

    assert places
    missed = [place for place in places if not any(place in error and "misspelt_" in error for error in errors)]
    assert missed == []


def test_the_sample_has_the_types_of_this_version(stub_folder: Path, mypy_cache: Path) -> None:
    assert mypy(stub_folder, mypy_cache, SAMPLE) == []


def test_each_mistake_in_the_sample_is_found(stub_folder: Path, mypy_cache: Path, tmp_path: Path) -> None:
    # In one run, each in a file of its own.
    code, expected = SAMPLE.read_text(encoding="utf-8"), {}
    for place, (right, wrong, message) in enumerate(WRONG.values()):
        assert right in code
        path = tmp_path / f"sample_{place}.py"
        path.write_text(code.replace(right, wrong), encoding="utf-8")
        expected[path] = message

    errors = mypy(stub_folder, mypy_cache, *expected)

    for path, message in expected.items():
        assert any(path.name in error and message in error for error in errors), f"{message}: {errors}"


def test_a_name_of_later_versions_needs_hasattr(
    tensorrt_bindings: Bindings, stub_folder: Path, mypy_cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sample.py"
    guard = 'hasattr(trt, "TilingOptimizationLevel") and hasattr(config, "tiling_optimization_level")'
    path.write_text(SAMPLE.read_text(encoding="utf-8").replace(guard, "config"), encoding="utf-8")

    errors = mypy(stub_folder, mypy_cache, path)

    assert bool(errors) == (tensorrt_bindings.version == "10.3.0")
