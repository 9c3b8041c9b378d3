"""The house: imports point one way, and the wheel is all that a device without torch needs."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def command(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*map(str, arguments)], capture_output=True, check=False, text=True, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built from the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    result = command(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder), REPOSITORY, cwd=folder
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_imports_point_one_way() -> None:
    result = command(Path(sys.executable).with_name("lint-imports"), "--no-cache", cwd=REPOSITORY)

    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_the_wheel_holds_all_packages_typed_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "calipso_bench",
        "calipso_export",
        "calipso_runtime",
    }
    for package, root in (
        ("calipso_bench", "bench"),
        ("calipso_export", "export"),
        ("calipso_runtime", "runtime"),
    ):
        assert f"{package}/py.typed" in names
        sources = {str(path.relative_to(REPOSITORY / root)) for path in (REPOSITORY / root).rglob("*.py")}
        assert sources == {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")}


def test_the_wheel_brings_the_command_and_needs_numpy_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        entries = archive.read(f"{folder}/entry_points.txt").decode()
        metadata = archive.read(f"{folder}/METADATA").decode().splitlines()

    required = [line for line in metadata if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert [line.split()[1].split(">")[0] for line in required] == ["numpy"]
    assert "calipso = calipso_runtime.__main__:main" in entries
    assert "export = calipso_export.cli:export_command" in entries


PROGRAM = """
import importlib.util, json, sys
import calipso_runtime
from calipso_runtime import BackendUnavailableError, BundleNotFoundError

absent = ("torch", "onnxruntime", "PIL", "open_clip", "onnx")
print(json.dumps([name for name in absent if importlib.util.find_spec(name)]))
for path, kind in (("nowhere", BundleNotFoundError), (sys.argv[1], BackendUnavailableError)):
    try:
        calipso_runtime.load(path)
    except kind as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.network
def test_the_wheel_with_numpy_alone_says_what_is_missing(wheel: Path, bundle: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    installed = command(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    assert installed.returncode == 0, installed.stderr

    result = command(python, "-c", PROGRAM, bundle, cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    absent, nowhere, no_engine = result.stdout.splitlines()
    assert absent == "[]"
    assert nowhere.startswith("nowhere does not exist")
    assert "calipso[ort]" in no_engine
