"""The `calipso` command: answers on stdout, errors in one line on stderr, and its exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from bad_inputs import bad_pictures, no_models
from click.testing import CliRunner, Result
from PIL import Image
from rich import progress
from rich.console import Console
from runtime_samples import LABELS, MakeBundle, picture

import calipso_runtime
from calipso_runtime.backends import ALL_BACKENDS
from calipso_runtime.cli import calipso
from child_process import child

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return lambda *arguments, **options: CliRunner().invoke(calipso, [str(part) for part in arguments], **options)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three pictures in two folders, and a file that is none."""
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.JPG", "deep/c.webp")):
        kind = {".png": "PNG", ".JPG": "JPEG", ".webp": "WEBP"}[Path(name).suffix]
        picture("RGB", 30, 40, seed).save(folder / name, kind)
    (folder / "notes.txt").write_text("no picture")
    return folder


def command(*arguments: object, **options: object) -> "subprocess.CompletedProcess[bytes]":
    parts = [sys.executable, "-m", "calipso_runtime", *map(str, arguments)]
    return subprocess.run(parts, capture_output=True, check=False, **options)


def images(result: Result) -> list[str]:
    return [json.loads(line)["image"] for line in result.stdout.splitlines()]


def test_classify_as_json_is_one_object_per_line(run: Run, tiny: Path, photo: Path) -> None:
    result = run("classify", tiny, photo, "--json", "--top", 2)
    expected = calipso_runtime.load(tiny).classify(photo, top=2)

    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "image": str(photo),
        "predictions": [
            {"label": score.label, "probability": score.probability, "logit": score.logit} for score in expected
        ],
    }


def test_classify_for_people_has_a_line_per_class(run: Run, tiny: Path, photo: Path) -> None:
    result = run("classify", tiny, photo, "--top", 3)
    best = calipso_runtime.load(tiny).classify(photo)

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == str(photo)
    assert len(lines) == 4
    assert lines[1].split() == [f"{best.probability:.2%}", best.label]


def test_classify_tells_an_unknown_picture_where_the_bundle_has_a_threshold(
    run: Run, make_bundle: MakeBundle, photo: Path
) -> None:
    strict, lax = (
        make_bundle(confidence={"temperature": 1.0, "unknown": {"threshold": threshold}}) for threshold in (1.0, 0.0)
    )

    assert "unknown  (below 100.00%)" in run("classify", strict, photo).stdout.splitlines()[1]
    assert "unknown  (below" not in run("classify", lax, photo).stdout
    told = [json.loads(run("classify", each, photo, "--json").stdout)["unknown"] for each in (strict, lax)]
    assert told == [True, False]


def test_a_folder_is_searched_recursively_and_sorted(run: Run, tiny: Path, album: Path) -> None:
    result = run("classify", tiny, album, "--json")

    assert images(result) == [str(album / name) for name in ("a.JPG", "b.png", "deep/c.webp")]
    assert result.exit_code == 0


def test_a_quoted_pattern_is_expanded(run: Run, tiny: Path, album: Path) -> None:
    assert images(run("classify", tiny, f"{album}/**/*.[wp]*", "--json")) == [
        str(album / "b.png"),
        str(album / "deep" / "c.webp"),
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(run: Run, tiny: Path, album: Path) -> None:
    odd = album / "a[1]*.png"
    shutil.copy(album / "b.png", odd)

    assert images(run("classify", tiny, odd, "--json")) == [str(odd)]


def test_a_dash_is_one_picture_on_stdin(run: Run, tiny: Path, photo: Path) -> None:
    result = run("classify", tiny, "-", "--json", input=photo.read_bytes())
    from_path = run("classify", tiny, photo, "--json")

    assert images(result) == ["-"]
    assert json.loads(result.stdout)["predictions"] == json.loads(from_path.stdout)["predictions"]


def test_stdin_twice_is_bad_usage(run: Run, tiny: Path) -> None:
    assert run("classify", tiny, "-", "-", input=b"").exit_code == 2


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_an_unreadable_picture_is_told_and_the_rest_answered(run: Run, tiny: Path, album: Path, batch: int) -> None:
    (album / "b.png").write_bytes(b"broken")

    result = run("classify", tiny, album, album / "lost.jpg", "--json", "--batch", batch)

    assert result.exit_code == 1
    assert images(result) == [str(album / "a.JPG"), str(album / "deep" / "c.webp")]
    told = result.stderr.splitlines()
    assert len(told) == 3
    assert told[0].startswith(f"error: {album / 'b.png'} cannot be used as a picture")
    assert told[1].startswith(f"error: {album / 'lost.jpg'} cannot be used as a picture")
    assert told[2] == "error: 2 of 4 pictures could not be read"


def test_each_bad_picture_is_told_and_the_rest_answered(run: Run, tiny: Path, photo: Path, tmp_path: Path) -> None:
    paths = {tmp_path / name: given for name, given in bad_pictures().items()}
    for path, (content, _) in paths.items():
        path.write_bytes(content)

    result = run("classify", tiny, *paths, photo, "--json")

    assert (result.exit_code, images(result)) == (1, [str(photo)])
    *told, summary = result.stderr.splitlines()
    for (path, (_, word)), line in zip(paths.items(), told, strict=True):
        assert line.startswith(f"error: {path} ")
        assert word in line
    assert summary == f"error: {len(paths)} of {len(paths) + 1} pictures could not be read"


def test_what_is_no_calipso_file_is_one_line_and_exit_code_1(run: Run, photo: Path, tmp_path: Path) -> None:
    for path, said in no_models(tmp_path / "models").items():
        result = run("classify", path, photo)

        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {path}")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_no_pictures_is_bad_usage(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    result = run("classify", tiny, tmp_path / "empty", f"{tmp_path}/*.jpg")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: no pictures in {tmp_path / 'empty'}, {tmp_path}/*.jpg: expected files")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("classify",),
        ("nonsense",),
        ("classify", "bundle"),
        ("classify", "bundle", "a.jpg", "--top", "0"),
        ("classify", "bundle", "a.jpg", "--batch", "0"),
        ("classify", "bundle", "a.jpg", "--threads", "0"),
        ("classify", "bundle", "a.jpg", "--backend", "tensorflow"),
        ("inspect",),
        ("doctor", "--nonsense"),
    ],
)
def test_bad_usage_exits_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("name", ["classify", "inspect"])
def test_an_error_is_one_line_and_exit_code_1(run: Run, name: str, photo: Path, tmp_path: Path) -> None:
    result = run(name, tmp_path / "nowhere", *([photo] if name == "classify" else []))

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: {tmp_path / 'nowhere'} does not exist: expected a bundle (a directory) or a .onnx file\n"
    )


def test_debug_shows_the_traceback_and_the_same_exit_code(run: Run, tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "nowhere", env={"CALIPSO_DEBUG": "1"})

    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_a_failed_parity_gate_is_one_line_on_stderr(run: Run, make_bundle: MakeBundle, photo: Path) -> None:
    result = run("classify", make_bundle(parity="failed"), photo, "--json")

    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")
    assert result.stderr.count("\n") == 1
    assert json.loads(result.stdout)["image"] == str(photo)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command(run: Run, option: str) -> None:
    result = run(option)

    assert result.exit_code == 0
    for name in ("classify", "inspect", "doctor", "export", "verify"):
        assert f"  {name} " in result.stdout


def test_verbose_tells_on_stderr_which_engine_it_is_and_why(run: Run, tiny: Path, photo: Path) -> None:
    quiet, verbose = run("classify", tiny, photo), run("classify", tiny, photo, "-v")

    assert quiet.stderr == ""
    assert verbose.stdout == quiet.stdout
    assert verbose.stderr.startswith("auto prefers ")
    assert " runs model.onnx on " in verbose.stderr


def test_doctor_tells_of_every_backend_whether_it_works_or_why_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "calipso_runtime.backends.openvino", raising=False)

    told = {each["name"]: each for each in json.loads(run("doctor", "--json").stdout)["backends"]}

    assert set(told) == set(ALL_BACKENDS)
    assert told["ort"] == {"name": "ort", "works": True, "detail": "--backend ort can be used"}
    assert not told["openvino"]["works"]
    assert "pip install 'calipso[openvino]'" in told["openvino"]["detail"]


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").stdout == f"calipso {calipso_runtime.__version__}\n"


def test_a_progress_bar_is_shown_to_a_person_with_many_pictures(
    run: Run, tiny: Path, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calipso_runtime.commands import classify

    monkeypatch.setattr(classify, "_PROGRESS_FROM", 2)
    monkeypatch.setattr(classify, "_is_watched", lambda: True)
    shown: list[tuple[int, bool]] = []

    def track(answers: Iterable[object], *, total: int, console: Console, **_: object) -> Iterable[object]:
        shown.append((total, console.stderr))
        return answers

    monkeypatch.setattr(progress, "track", track)

    result = run("classify", tiny, album, "--json")

    assert len(images(result)) == 3
    assert shown == [(3, True)]


def test_no_progress_bar_without_a_terminal(run: Run, tiny: Path, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calipso_runtime.commands import classify

    monkeypatch.setattr(classify, "_PROGRESS_FROM", 2)

    assert run("classify", tiny, album, "--json").stderr == ""


def test_a_real_process_answers_and_exits_0(tiny: Path, photo: Path) -> None:
    result = command("classify", tiny, "-", "--json", input=photo.read_bytes())

    assert (result.returncode, result.stderr) == (0, b"")
    assert {score["label"] for score in json.loads(result.stdout)["predictions"]} <= set(LABELS)


def test_a_real_process_fails_with_1_and_refuses_with_2(tiny: Path, tmp_path: Path) -> None:
    failed, refused = command("inspect", tmp_path / "nowhere"), command("classify", tiny)

    assert (failed.returncode, failed.stdout) == (1, b"")
    assert failed.stderr.startswith(b"error: ")
    assert b"Traceback" not in failed.stderr + refused.stderr
    assert refused.returncode == 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for the moment to interrupt")
def test_ctrl_c_exits_130_quietly(tiny: Path) -> None:
    command = [sys.executable, "-m", "calipso_runtime", "classify", tiny, "-"]
    pipe = subprocess.PIPE
    with child(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        deadline = time.monotonic() + 20
        while "libonnxruntime" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)

    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
def test_a_reader_that_leaves_early_gets_no_traceback(tiny: Path, tmp_path: Path) -> None:
    for number in range(400):
        Image.new("RGB", (4, 4), (number % 256, 0, 0)).save(tmp_path / f"{number:03}{'x' * 200}.png")
    command = [sys.executable, "-m", "calipso_runtime", "classify", tiny, tmp_path, "--batch", "1"]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        code = process.wait(timeout=30)

    assert code != 0
    assert err == b""
