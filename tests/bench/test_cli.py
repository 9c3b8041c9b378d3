"""`calipso bench` on a real bundle, in this process and in others."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_samples import PEAKS, read_json, write_bundle
from click.testing import CliRunner, Result
from PIL import Image

from calipso_bench import run as run_module
from calipso_runtime.cli import calipso
from child_process import child

QUICK = ("--against", "", "--threads", "1", "--seconds", "0.02")
# The machine's peaks take long to measure, and torch to import.
PROGRAM = f"""
import sys
for name in ("torch", "torchvision", "open_clip"):
    sys.modules[name] = None
from calipso_bench import machine
machine.peaks = lambda threads: {PEAKS!r}
from calipso_runtime.__main__ import main
main()
"""


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(calipso, ["bench", *map(str, arguments)])


def process(*arguments: object) -> "contextlib.AbstractContextManager[subprocess.Popen[str]]":
    command = [sys.executable, "-c", PROGRAM, "bench", *arguments]
    return child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs it, and importing it takes seconds."""
    for name in ("torch", "torchvision", "open_clip"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ctrl-C in the second cell; the cells that were measured, in their order."""
    real, measured = run_module.cell_measure, []

    def measure(name: str) -> Any:
        def cell(entrants: Any, seconds: float, seed: int) -> Any:
            measured.append(name)
            if len(measured) == 2:
                raise KeyboardInterrupt
            return real(name)(entrants, seconds, seed)

        return cell

    monkeypatch.setattr(run_module, "cell_measure", measure)
    return measured


def test_a_run_writes_raw_samples_and_tables(quick: None, no_torch: None, tiny: Path, tmp_path: Path) -> None:
    result = bench(tiny, *QUICK, "--batch", "1,2", "--json", tmp_path / "a.json", "--markdown", tmp_path / "a.md")

    assert result.exit_code == 0, result.output
    document = read_json(tmp_path / "a.json")
    assert document["finished"]
    assert [(cell["stage"], cell["batch"]) for cell in document["cells"]] == [
        (stage, batch) for batch in (1, 2) for stage in ("encode", "classify", "end-to-end")
    ]
    first = document["cells"][0]
    assert first["rechecked"] == sum(map(len, first["samples_ms"].values())) >= 3
    assert first["stopped"] in ("interval", "budget")
    assert document["bundle"]["model"] == "tiny"
    assert document["machine"] == {"1": PEAKS}
    assert (tmp_path / "a.md").read_text() == result.stdout
    assert str(tmp_path) not in json.dumps(document)


def test_a_finished_run_is_shown_again_without_measuring(
    quick: None, no_torch: None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (tiny, *QUICK, "--batch", "1", "--stages", "classify", "--json", tmp_path / "a.json")
    first = bench(*arguments)
    monkeypatch.delattr(run_module, "cell_measure")

    again = bench(*arguments)

    assert (again.exit_code, again.stdout) == (0, first.stdout)


@pytest.mark.usefixtures("quick", "no_torch")
def test_an_interrupted_run_keeps_its_cells_and_says_how_to_go_on(
    tiny: Path, tmp_path: Path, interrupted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (tiny, *QUICK, "--batch", "1", "--json", tmp_path / "a.json")
    monkeypatch.setattr(sys, "argv", ["calipso", "bench", "tiny.calipso", "--overwrite"])

    result = bench(*arguments)

    assert result.exit_code == 130
    told = "keeps what was measured. The same command goes on:\n  calipso bench tiny.calipso\n"
    assert told in result.stderr
    kept = read_json(tmp_path / "a.json")
    assert (len(kept["cells"]), kept["finished"]) == (1, False)

    again = bench(*arguments)

    document = read_json(tmp_path / "a.json")
    assert again.exit_code == 0
    assert document["cells"][0] == kept["cells"][0]
    assert (len(document["cells"]), len(interrupted)) == (3, 4)


def test_an_interrupted_run_without_a_file_says_that_nothing_is_kept(
    quick: None, no_torch: None, tiny: Path, interrupted: list[str]
) -> None:
    result = bench(tiny, *QUICK, "--batch", "1")

    assert result.exit_code == 130
    assert "nothing is kept without --json FILE" in result.stderr


def test_results_of_another_bundle_are_not_touched(quick: None, no_torch: None, tiny: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other.calipso", prompts={"templates": ["a drawing of a {}."]})
    arguments = (*QUICK, "--batch", "1", "--stages", "classify", "--json", tmp_path / "a.json")
    bench(tiny, *arguments)
    before = (tmp_path / "a.json").read_bytes()

    result = bench(other, *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "holds the results of another run (another bundle)" in result.stderr
    assert (tmp_path / "a.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--batch", "one"), "--batch is 'one': expected whole numbers with commas"),
        (("--against", "keras"), "--against has unknown names: keras"),
        (("--split", "a.json"), "--split belongs to --accuracy"),
        (("--accuracy",), "--accuracy needs --data DIR"),
        (("--baseline", "nowhere.json"), "--baseline nowhere.json is not a file"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(tiny: Path, arguments: tuple[str, ...], told: str) -> None:
    result = bench(tiny, *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_is_no_bundle_fails_with_one_line(tmp_path: Path) -> None:
    result = bench(tmp_path)

    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "is not a Calipso bundle" in result.stderr


def test_a_baseline_that_holds_no_results_is_refused_before_anything_is_measured(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")

    result = bench(tiny, "--baseline", tmp_path / "old.json", "--json", tmp_path / "a.json")

    assert result.exit_code == 2
    assert not (tmp_path / "a.json").exists()


def test_without_torch_the_bundle_is_measured_and_its_rivals_say_why_not(tiny: Path, tmp_path: Path) -> None:
    arguments = ("--threads", "1", "--batch", "1", "--seconds", "0.05", "--stages", "classify")

    with process(tiny, *arguments, "--json", tmp_path / "a.json") as running:
        out, err = running.communicate(timeout=120)

    assert running.returncode == 0, err
    document = read_json(tmp_path / "a.json")
    lines = {line["name"]: line for line in document["contenders"]}
    assert lines["eager"]["reason"].startswith("torch cannot be imported")
    assert "pip install 'calipso[export]'" in out
    assert "bundle/ort" in document["cells"][0]["samples_ms"]
    assert document["verification"]["bundle/ort"]["against"] == "bundle/ort"
    assert document["work"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_exits_130_and_keeps_the_file_and_no_work_folder(
    tiny: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    path = tmp_path / "a.json"
    # Slices of a minute: it is in the middle of the first one.
    arguments = ("--against", "", "--threads", "1", "--seconds", "300", "--scenario", "throughput", "--json", path)
    with process(tiny, *arguments) as running:
        for _ in range(1200):
            if running.poll() is not None or (path.exists() and read_json(path)["verification"]):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(timeout=0.05)

        running.send_signal(number)
        out, err = running.communicate(timeout=60)

    assert (running.returncode, out) == (130, ""), err
    assert "a.json keeps what was measured" in err
    assert read_json(tmp_path / "a.json")["finished"] is False
    assert list((tmp_path / "temporary").glob("calipso-bench-*")) == []


@pytest.mark.slow
def test_accuracy_is_measured_instead_of_speed(exported: Path, exported_model: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("ant", "bee", "crab"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            tmp_path / "data" / name / "0.png"
        )
    result = bench(
        *(exported, "--accuracy", "--data", tmp_path / "data", "--model", exported_model, "--threads", "1"),
        *("--json", tmp_path / "a.json", "--html", tmp_path / "a.html", "--markdown", tmp_path / "a.md"),
    )

    assert result.exit_code == 0, result.output
    assert read_json(tmp_path / "a.json")["kind"] == "calipso-accuracy"
    assert (tmp_path / "a.md").read_text() == result.stdout
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_every_rival_is_verified_and_timed(quick: None, exported: Path, exported_model: Path, tmp_path: Path) -> None:
    rivals = "eager,ort-plain,openvino"
    result = bench(
        *(exported, "--model", exported_model, "--against", rivals, "--threads", "1", "--seconds", "0.2"),
        *("--batch", "1", "--scenario", "latency,throughput,memory", "--json", tmp_path / "a.json"),
    )

    assert result.exit_code == 0, result.output
    document = read_json(tmp_path / "a.json")
    timed = set(document["cells"][0]["samples_ms"])
    assert timed >= {*rivals.split(","), "bundle/ort"}
    assert all(checked["passed"] for checked in document["verification"].values())
    assert {line["contender"] for line in document["processes"]} >= {"eager", "ort-plain", "openvino", "bundle/ort"}
    assert all(len(line["samples"]) == 3 for line in document["processes"])
    assert document["work"]["flops_per_image"] > 0
    assert "cold start and memory" in result.stdout
