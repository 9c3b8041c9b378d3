"""`calipso ship`: a kit that is complete, checked, and installs itself; its scripts run as real processes."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gpu import Gpu
from open_samples import write_open_bundle
from rtx_plans import UNVERIFIED, write_rtx_plan
from runtime_samples import LABELS, SIZE, MakeBundle, tiny_reference

import calipso_runtime
from calipso_runtime.bundle import MANIFEST_FILE, open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.engines.build import build
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.ship import kit as ship_kit

BUILD = ("--batch", "4", "--batch", "1,2,9", "--level", "2", "--tf32")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(calipso, ["ship", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(checkable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit as a process of its own makes it, wheel and all."""
    output = tmp_path_factory.mktemp("kits") / "kit"
    command = [sys.executable, "-m", "calipso_runtime", "ship", checkable, "--target", "jetson", "-o", output, *BUILD]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return output


@pytest.fixture
def kit(made: Path, tmp_path: Path) -> Path:
    """A copy of it, in a place that a shell, sed and systemd could trip over."""
    return Path(shutil.copytree(made, tmp_path / "a kit, 100% & more"))


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """As little as passes for the runtime's wheel."""
    path = tmp_path / "calipso-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("calipso_runtime/__init__.py", "")
    return path


def test_a_kit_holds_everything_a_device_needs(made: Path) -> None:
    names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}

    (wheel,) = [name for name in names if name.endswith(".whl")]
    scripts = {"install.sh", "build.sh", "trtexec.sh", "benchmark.sh", "calipso-benchmark.service.in", "SHA256SUMS"}
    sources = {"CMakeLists.txt", "classify.cpp", "engine.cpp", "engine.hpp", "files.cpp", "files.hpp"}
    sample = {"sample.npy", "labels.txt", "confidence.txt", "expected.txt"}
    bundle = {"manifest.json", "model.onnx", "parity.json", "reference.npz"}
    assert names == {
        wheel,
        *scripts,
        *(f"cpp/{name}" for name in sources | sample),
        *(f"bundle/{name}" for name in bundle),
    }
    assert list(made.parent.glob("*.partial")) == []


def test_the_wheel_holds_the_runtime_and_the_kits_own_sources(made: Path) -> None:
    (wheel,) = made.glob("calipso-*.whl")

    names = set(zipfile.ZipFile(wheel).namelist())

    files = Path(ship_kit.__file__).with_name("files")
    expected = {f"calipso_runtime/ship/files/{path.relative_to(files)}" for path in files.rglob("*") if path.is_file()}
    assert {"calipso_runtime/__init__.py", *expected} <= names


def test_sha256sum_finds_every_file_right_and_none_unlisted(made: Path) -> None:
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=made, check=True)

    listed = {line.split("  ", 1)[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    found = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert found - listed == {"SHA256SUMS"}


def test_the_bundle_in_it_is_the_bundle(made: Path, checkable: Path) -> None:
    assert open_bundle(made / "bundle").digest == open_bundle(checkable).digest


def test_the_scripts_build_with_the_options_that_were_given(made: Path) -> None:
    build, trtexec = ((made / name).read_text() for name in ("build.sh", "trtexec.sh"))

    words = " ".join(build.replace("\\\n", " ").splitlines()[-1].split())
    assert words == "venv/bin/calipso build bundle --engine tensorrt --batch 4,4,4 --batch 1,2,9 --level 2 --tf32"
    assert f"--maxShapes=image:9x3x{SIZE[0]}x{SIZE[1]}" in trtexec
    assert ("--noTF32" in trtexec, "--onnx=bundle/model.onnx" in trtexec) == (False, True)
    assert "--batch 2,4 --latency" in (made / "benchmark.sh").read_text()


def test_what_is_expected_of_the_program_is_what_python_answers(made: Path) -> None:
    images = np.load(made / "cpp" / "sample.npy", allow_pickle=False)
    with calipso_runtime.load(made / "bundle", backend="ort") as classifier:
        answers = classifier.classify(images)

    lines = []
    for place, prediction in enumerate(answers):
        lines += [f"sample.npy[{place}]", *(f"  {score.probability:8.2%}  {score.label}" for score in prediction)]
    assert (made / "cpp" / "expected.txt").read_text().splitlines() == lines
    assert (made / "cpp" / "labels.txt").read_text().splitlines() == list(LABELS)


MARKS = ("@TARGET@", "@BATCHES@", "@EXTRAS@", "@BACKEND@", "@PINNED@")
SCRIPTS = ("install.sh", "build.sh", "trtexec.sh", "benchmark.sh")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_one_that_sh_reads(made: Path, script: str) -> None:
    subprocess.run(["sh", "-n", made / script], check=True)
    assert os.access(made / script, os.X_OK)
    assert not [mark for mark in MARKS if mark in (made / script).read_text()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing_in_the_scripts(made: Path, script: str) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck on PATH")
    subprocess.run([shellcheck, made / script], check=True)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A folder for PATH with a python3 that notes its calls, and makes virtual environments of its like."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = f"""#!/bin/sh
echo "$(basename "$0") $*" >>{tmp_path}/calls
case "$(basename "$0") $*" in
"python3 -m venv"*)
    for last; do :; done
    mkdir -p "$last/bin"
    cp "$0" "$last/bin/python"
    cp "$0" "$last/bin/calipso"
    ;;
"calipso check"*)
    [ ! -e {tmp_path}/check-fails ] || {{ rm {tmp_path}/check-fails; exit 1; }}
    case "$*" in *--json*) echo '{{"status": "passed"}}' ;; esac
    ;;
"python3 -c import tensorrt") [ ! -e {tmp_path}/no-tensorrt ] ;;
esac
"""
    (folder / "python3").write_text(script)
    (folder / "python3").chmod(0o755)
    return folder


def sh(script: Path, device: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{device}:{os.environ['PATH']}", "HOME": str(device)}
    # From elsewhere: a script has to find its own folder.
    return subprocess.run(["sh", script], cwd=device, env=environment, capture_output=True, text=True, check=False)


def calls(device: Path) -> list[str]:
    path = device.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_installing_makes_an_environment_builds_and_checks(kit: Path, device: Path) -> None:
    result = sh(kit / "install.sh", device)

    assert result.returncode == 0, result.stderr
    (wheel,) = kit.glob("calipso-*.whl")
    assert calls(device)[1:] == [
        "python3 -c import tensorrt",
        "python3 -m venv --clear --system-site-packages venv",
        f"python -m pip install ./{wheel.name}[cli]",
        "calipso doctor",
        "calipso build bundle --engine tensorrt --batch 4,4,4 --batch 1,2,9 --level 2 --tf32",
        "calipso check bundle --backend tensorrt",
    ]


def test_a_server_takes_tensorrt_from_pip(checkable: Path, device: Path, wheel: Path, tmp_path: Path) -> None:
    assert run(checkable, "--target", "server", "-o", tmp_path / "kit", "--wheel", wheel).exit_code == 0

    assert sh(tmp_path / "kit" / "install.sh", device).returncode == 0
    assert "python3 -m venv --clear venv" in calls(device)
    assert f"python -m pip install ./{wheel.name}[cli,trt]" in calls(device)
    assert "python3 -c import tensorrt" not in calls(device)


@pytest.mark.parametrize("name", ["bundle/model.onnx", "build.sh", "cpp/engine.cpp"])
def test_an_edited_file_stops_the_installation_before_anything_runs(kit: Path, device: Path, name: str) -> None:
    (kit / name).write_bytes((kit / name).read_bytes() + b"\n")

    result = sh(kit / "install.sh", device)

    assert (result.returncode, calls(device)) == (1, [])
    assert f"{name}: FAILED" in result.stdout
    assert "copy it again" in result.stderr


def test_a_jetson_without_tensorrt_is_told_how_to_get_it(kit: Path, device: Path) -> None:
    (device.parent / "no-tensorrt").touch()

    result = sh(kit / "install.sh", device)

    assert result.returncode == 1
    assert "sudo apt install python3-libnvinfer" in result.stderr
    assert not (kit / "venv").exists()


def test_an_engine_that_does_not_answer_right_fails_the_installation(kit: Path, device: Path) -> None:
    (device.parent / "check-fails").touch()

    result = sh(kit / "install.sh", device)

    assert (result.returncode, calls(device)[-1]) == (1, "calipso check bundle --backend tensorrt")
    assert "done:" not in result.stdout


def test_the_unit_names_the_kits_own_place_as_systemd_reads_it(kit: Path, device: Path, tmp_path: Path) -> None:
    sh(kit / "install.sh", device)

    unit = (kit / "calipso-benchmark.service").read_text()
    assert f'ExecStart=/bin/sh "{tmp_path}/a kit, 100%% & more/benchmark.sh"' in unit
    assert "@" not in unit
    if (systemd := shutil.which("systemd-analyze")) is not None:
        result = subprocess.run(
            [systemd, "verify", kit / "calipso-benchmark.service"], capture_output=True, text=True, check=False
        )
        assert (result.returncode, "calipso" in result.stderr) == (0, False), result.stderr


def test_the_benchmark_leaves_one_file_of_json(kit: Path, device: Path) -> None:
    sh(kit / "install.sh", device)

    result = sh(kit / "benchmark.sh", device)

    (written,) = (kit / "benchmarks").iterdir()
    assert (result.returncode, written.suffix, json.loads(written.read_text())) == (0, ".json", {"status": "passed"})


def test_a_benchmark_that_could_not_run_leaves_nothing(kit: Path, device: Path) -> None:
    sh(kit / "install.sh", device)
    (device.parent / "check-fails").touch()

    assert sh(kit / "benchmark.sh", device).returncode == 1
    assert list((kit / "benchmarks").iterdir()) == []


def test_check_measures_what_the_benchmark_asks_for(checkable: Path) -> None:
    arguments = ["check", str(checkable), "--backend", "ort", "--batch", "1,2", "--latency"]
    as_json = CliRunner().invoke(calipso, [*arguments, "--json"])
    as_text = CliRunner().invoke(calipso, arguments)

    measured = json.loads(as_json.stdout)["latency_ms"]
    assert list(measured) == ["1", "2"]
    assert all(sample > 0 for samples in measured.values() for sample in samples)
    assert as_text.stdout.count(": median ") == 2


def test_an_existing_kit_is_replaced_only_when_asked(checkable: Path, wheel: Path, tmp_path: Path) -> None:
    arguments = (checkable, "--target", "server", "-o", tmp_path / "kit", "--wheel", wheel)
    assert run(*arguments).exit_code == 0
    (tmp_path / "kit" / "left-over").touch()

    refused, replaced = run(*arguments), run(*arguments, "--overwrite")

    assert (refused.exit_code, replaced.exit_code) == (2, 0)
    assert "exists already" in refused.stderr
    assert not (tmp_path / "kit" / "left-over").exists()


def test_a_folder_that_is_no_kit_is_never_replaced(checkable: Path, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()

    result = run(checkable, "--target", "server", "-o", tmp_path / "mine", "--wheel", wheel, "--overwrite")

    assert result.exit_code == 2
    assert (tmp_path / "mine" / "thesis").exists()


@pytest.mark.parametrize("name", ["calipso-0.1.0-py3-none-any.whl", "other-1-py3-none-any.whl", "missing-1.whl"])
def test_what_is_no_wheel_of_ours_is_refused_and_leaves_nothing(checkable: Path, tmp_path: Path, name: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no archive")

    result = run(checkable, "--target", "server", "-o", tmp_path / "out" / "kit", "--wheel", tmp_path / name)

    assert result.exit_code == 2
    assert "is no wheel of calipso" in result.stderr
    assert not (tmp_path / "out").exists()


def test_away_from_a_source_tree_the_wheel_has_to_be_given(
    checkable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        calipso_runtime, "__file__", str(tmp_path / "site-packages" / "calipso_runtime" / "__init__.py")
    )

    result = run(checkable, "--target", "server", "-o", tmp_path / "kit")

    assert result.exit_code == 2
    assert "give it with --wheel FILE" in result.stderr


def test_a_source_tree_that_does_not_build_says_what_pip_says(
    checkable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[build-system]\nrequires = []\nbuild-backend = 'nothing_such'\n")
    monkeypatch.setattr(calipso_runtime, "__file__", str(tmp_path / "runtime" / "calipso_runtime" / "__init__.py"))

    result = run(checkable, "--target", "server", "-o", tmp_path / "kit")

    assert result.exit_code == 2
    assert "pip says" in result.stderr
    assert "nothing_such" in result.stderr


def test_a_bundle_that_nothing_could_be_checked_with_is_not_shipped(tiny: Path, wheel: Path, tmp_path: Path) -> None:
    result = run(tiny, "--target", "server", "-o", tmp_path / "kit", "--wheel", wheel)

    assert result.exit_code == 1
    assert "exported with --no-reference" in result.stderr


def test_a_bundle_that_takes_any_labels_is_refused(wheel: Path, tmp_path: Path) -> None:
    bundle = write_open_bundle(tmp_path / "any.calipso", kind="embed")

    result = run(bundle, "--target", "server", "-o", tmp_path / "kit", "--wheel", wheel)

    assert result.exit_code == 2
    assert f"{bundle} takes labels when it is used, and a kit's C++ program knows those of the export" in result.stderr
    assert not (tmp_path / "kit").exists()


def test_a_label_of_two_lines_is_refused(make_bundle: MakeBundle, wheel: Path, tmp_path: Path) -> None:
    bundle = make_bundle(reference=tiny_reference(), labels=("two\nlines", *LABELS[1:]))

    result = run(bundle, "--target", "server", "-o", tmp_path / "kit", "--wheel", wheel)

    assert result.exit_code == 1
    assert "is not one line" in result.stderr
    assert not (tmp_path / "kit").exists()


def test_engines_and_signatures_come_along_when_asked(
    gpu: Gpu, checkable: Path, wheel: Path, device: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    arguments = (bundle, "--target", "server", "--wheel", wheel, "--with-engines", "-o", tmp_path / "kit")
    without = run(*arguments)
    build(bundle, BuildOptions(profiles=(BatchRange(least=1, best=1, most=4),)), report=lambda *_: None)
    (record,) = (bundle / "engines").glob("*.json")
    for signed in (record, bundle / MANIFEST_FILE):
        signed.with_name(f"{signed.name}.sig").write_bytes(b"\1" * 64)

    result = run(*arguments)

    assert (without.exit_code, "holds no engines" in without.stderr) == (1, True)
    assert result.exit_code == 0, result.stderr
    (plan,) = (tmp_path / "kit" / "bundle" / "engines").glob("*.plan")
    assert hashlib.sha256(plan.read_bytes()).hexdigest() == json.loads(record.read_text())["plan"]["sha256"]
    signatures = {path.name for path in (tmp_path / "kit").rglob("*.sig")}
    assert signatures == {f"{record.name}.sig", "manifest.json.sig"}
    # It runs there and answers right: nothing is built.
    assert sh(tmp_path / "kit" / "install.sh", device).returncode == 0
    assert not [call for call in calls(device) if call.startswith("calipso build")]


def test_an_engine_that_came_along_and_does_not_run_there_is_built_again(
    gpu: Gpu, checkable: Path, wheel: Path, device: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    build(bundle, BuildOptions(profiles=(BatchRange(least=1, best=1, most=4),)), report=lambda *_: None)
    run(bundle, "--target", "server", "--wheel", wheel, "--with-engines", "-o", tmp_path / "kit")
    (device.parent / "check-fails").touch()

    assert sh(tmp_path / "kit" / "install.sh", device).returncode == 0
    assert [call.split()[1] for call in calls(device)[-3:]] == ["check", "build", "check"]


def test_engines_of_another_library_or_graph_do_not_come_along(
    gpu: Gpu, checkable: Path, wheel: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    write_rtx_plan(gpu, bundle, tensorrt="1.7.1.116")

    result = run(bundle, "--target", "server", "--wheel", wheel, "--with-engines", "-o", tmp_path / "kit")

    assert result.exit_code == 1
    assert "holds no engines of TensorRT for its graph: build one with `calipso build`, or ship" in result.stderr


# Kits for TensorRT for RTX.


@pytest.fixture
def ready(gpu: Gpu, checkable: Path, tmp_path: Path) -> Path:
    """A bundle with engines of two versions of TensorRT for RTX, and one of TensorRT."""
    bundle = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    build(bundle, BuildOptions(profiles=(BatchRange(least=1, best=1, most=4),)), report=lambda *_: None)
    for version in ("1.7.1.116", "1.6.1.120"):
        write_rtx_plan(gpu, bundle, tensorrt=version, capabilities=((8, 6), (8, 9)), checks=UNVERIFIED)
    write_rtx_plan(gpu, bundle, tensorrt="1.7.1.116", capabilities=((12, 0),), checks=UNVERIFIED)
    return bundle


def rtx_kit(bundle: Path, wheel: Path, *arguments: str) -> tuple[Result, Path]:
    output = bundle.with_name("rtx kit")
    return run(bundle, "--target", "rtx", "--wheel", wheel, "-o", output, *arguments), output


def test_a_kit_for_rtx_has_ready_engines_of_one_version_and_nothing_for_tensorrt(ready: Path, wheel: Path) -> None:
    result, kit = rtx_kit(ready, wheel, "--with-engines")

    assert result.exit_code == 0, result.stderr
    names = {path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()}
    engines = {re.sub("-[0-9a-f]{8}[.]plan", ".plan", name) for name in names if name.startswith("bundle/engines/")}
    stems = {"rtx-sm86-sm89-1.7.1.116", "rtx-sm120-1.7.1.116"}
    assert engines == {f"bundle/engines/{stem}.{kind}" for stem in stems for kind in ("json", "plan")}
    assert not [name for name in names if name.startswith("cpp/") or name == "trtexec.sh"]
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=kit, check=True)


def test_a_kit_for_rtx_installs_the_version_that_its_engines_run_with_and_builds_nothing(
    ready: Path, wheel: Path, device: Path
) -> None:
    _, kit = rtx_kit(ready, wheel, "--with-engines")

    result = sh(kit / "install.sh", device)

    assert result.returncode == 0, result.stderr
    assert calls(device)[1:] == [
        "python3 -m venv --clear venv",
        f"python -m pip install ./{wheel.name}[cli,rtx] tensorrt-rtx==1.7.1.116",
        "calipso doctor",
        "calipso check bundle --backend tensorrt-rtx",
    ]
    assert "PICTURES --backend tensorrt-rtx" in result.stdout
    assert "check bundle --backend tensorrt-rtx --batch 8 --latency" in (kit / "benchmark.sh").read_text()


def test_a_kit_for_rtx_without_engines_compiles_where_it_is_installed(
    checkable: Path, wheel: Path, device: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    _, kit = rtx_kit(bundle, wheel)

    assert sh(kit / "install.sh", device).returncode == 0

    assert calls(device)[2:] == [
        f"python -m pip install ./{wheel.name}[cli,rtx]",
        "calipso doctor",
        "calipso build bundle --engine tensorrt-rtx --batch 1,8,32",
        "calipso check bundle --backend tensorrt-rtx",
    ]


@pytest.mark.parametrize("script", ["install.sh", "build.sh", "benchmark.sh"])
def test_every_script_of_a_kit_for_rtx_is_one_that_sh_reads(ready: Path, wheel: Path, script: str) -> None:
    _, kit = rtx_kit(ready, wheel, "--with-engines")

    subprocess.run(["sh", "-n", kit / script], check=True)
    assert not [mark for mark in MARKS if mark in (kit / script).read_text()]


def test_without_ready_engines_the_command_that_compiles_them_is_given(
    checkable: Path, wheel: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(checkable, tmp_path / "bundle"))

    result, kit = rtx_kit(bundle, wheel, "--with-engines")

    assert (result.exit_code, kit.exists()) == (1, False)
    assert "holds no engines of TensorRT for RTX for its graph: build one with `calipso build --engine" in result.stderr


def test_options_that_are_not_for_rtx_are_refused_before_a_kit_is_written(checkable: Path, wheel: Path) -> None:
    result, kit = rtx_kit(checkable, wheel, "--strip-weights")

    assert (result.exit_code, kit.exists()) == (2, False)
    assert "--strip-weights is not for TensorRT for RTX" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(),
        BuildOptions(profiles=(BatchRange(least=1, best=1, most=1),), dla_core=0, workspace_mib=7),
        BuildOptions(hardware_compatible=True, strip_weights=True, weight_streaming=True, tf32=True),
        BuildOptions(version_compatible=True, optimisation_level=5),
    ],
)
def test_the_words_of_a_build_say_all_its_options(options: BuildOptions) -> None:
    import click

    from calipso_runtime.commands.build_options import build_options, options_of
    from calipso_runtime.engines.options import build_words

    command = click.command()(build_options(options_of))

    assert command.main(build_words(options), standalone_mode=False) == options
