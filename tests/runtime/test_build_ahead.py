"""`calipso build --engine tensorrt-rtx` on a stand-in for the compiler: what is kept, and every way that it may end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from runtime_samples import MakeBundle

from calipso_runtime.cli import calipso
from calipso_runtime.engines.ahead import compile_ahead
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.engines.plans import read_plan
from calipso_runtime.errors import BackendUnavailableError, EngineBuildError, UsageError

STAND_IN = Path(__file__).parent / "stand_ins" / "rtx"
SMALL = BuildOptions(profiles=(BatchRange.parse("1,2,4"),))
# The command, with a folder before all others to import from.
COMMAND = "import sys; sys.path.insert(0, sys.argv.pop(1)); from calipso_runtime.__main__ import main; main()"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of files are POSIX")


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The stand-in, which works unless a test says otherwise."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setenv("CALIPSO_RTX_STAND_IN", "work")
    return monkeypatch


@pytest.fixture
def half(make_bundle: MakeBundle) -> Path:
    return make_bundle(precision="fp16")


def left(bundle: Path) -> list[str]:
    return sorted(path.name for path in (bundle / "engines").iterdir()) if (bundle / "engines").exists() else []


def run(bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(calipso, ["build", str(bundle), "--engine", "tensorrt-rtx", *arguments])


def test_a_plan_is_kept_with_what_is_known_of_it_and_its_answers_are_unverified(
    compiler: pytest.MonkeyPatch, half: Path
) -> None:
    finished = compile_ahead(half, SMALL, capability="sm89,sm86", report=quiet)

    record = read_plan(finished.plan.record_path).record
    assert finished.plan.path.read_bytes() == b"SM86 SM89"
    assert (record.machine.compiler, record.compiled_for) == ("TensorRT for RTX 1.7.0", ((8, 6), (8, 9)))
    assert (record.parity, record.failures) == ("unverified", ())
    assert [(each["mode"], each["name"], each["shape"]) for each in record.tensors] == [
        ("input", "image", [None, 3, 16, 16]),
        ("output", "logits", [None, 7]),
        ("output", "embedding", [None, 5]),
    ]
    assert record.layers["products"] == {"tower/MatMul": "fp16"}
    assert finished.warnings == ("a warning of the compiler",)


def test_the_command_says_what_it_compiled_and_that_no_gpu_has_run_it(
    compiler: pytest.MonkeyPatch, half: Path, tmp_path: Path
) -> None:
    result = run(half, "--capability", "sm86", "--log", str(tmp_path / "rtx.log"))

    assert result.exit_code == 0, result.output
    assert "TensorRT for RTX 1.7.0 for sm86, built in" in result.stdout
    assert "parity: unverified" in result.stdout
    assert "warning: answers unverified: no GPU has run this engine yet" in result.stderr
    assert "[VERBOSE] compiling for SM86" in (tmp_path / "rtx.log").read_text()


def test_progress_comes_through(compiler: pytest.MonkeyPatch, half: Path) -> None:
    seen = []

    compile_ahead(half, SMALL, capability="sm86", report=lambda *progress: seen.append(progress))

    assert seen == [("Building engine", done, 2) for done in (0, 1, 2)]


def test_an_engine_that_is_silently_in_another_type_is_not_kept_unless_forced(
    compiler: pytest.MonkeyPatch, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(precision="int8")

    with pytest.raises(EngineBuildError, match=r"no layer computes in int8, .*: 1 in fp16"):
        compile_ahead(bundle, SMALL, capability="sm86", report=quiet)
    assert left(bundle) == []

    forced = compile_ahead(bundle, SMALL, capability="sm86", force=True, report=quiet)
    assert forced.plan.record.failures


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("signal:SIGSEGV", r"crashed \(SIGSEGV\) while it built an engine from .*model\.onnx\. Nothing was written"),
        ("signal:SIGABRT", r"crashed \(SIGABRT\)"),
        ("signal:SIGKILL", r"was killed while .* the machine probably ran out of memory\. Most of it is held by "),
        ("exit:3:an assertion failed", r"ended with exit code 3 .* It printed: an assertion failed\."),
        ("exit:134:terminate called after bad_alloc", "the machine probably ran out of memory"),
        ("refuse", r"could not build an engine from .* for sm86: Cannot compile operation 'mm' for Turing \(SM75\)"),
    ],
)
def test_however_the_compiler_ends_it_is_one_error_and_nothing_stays(
    compiler: pytest.MonkeyPatch, half: Path, how: str, reason: str
) -> None:
    compiler.setenv("CALIPSO_RTX_STAND_IN", how)

    with pytest.raises(EngineBuildError, match=reason):
        compile_ahead(half, SMALL, capability="sm86", report=quiet)

    assert left(half) == []


def test_the_log_of_a_compiler_that_crashed_is_kept(compiler: pytest.MonkeyPatch, half: Path, tmp_path: Path) -> None:
    compiler.setenv("CALIPSO_RTX_STAND_IN", "signal:SIGSEGV")

    result = run(half, "--capability", "sm86", "--log", str(tmp_path / "rtx.log"))

    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert (tmp_path / "rtx.log").read_text() == "[VERBOSE] compiling for SM86\n"


def test_a_gpu_that_this_release_does_not_know_is_refused_with_those_that_it_knows(
    compiler: pytest.MonkeyPatch, half: Path
) -> None:
    with pytest.raises(EngineBuildError, match=r"1\.7\.0 does not compile for sm121, only for sm75, .*, sm120: leave"):
        compile_ahead(half, SMALL, report=quiet)


def test_without_the_compiler_the_extra_is_named(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('libtensorrt_rtx.so.1 is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))

    expected = r"cannot be imported \(libtensorrt_rtx.so.1 is missing\): pip install 'calipso\[rtx\]'"
    with pytest.raises(BackendUnavailableError, match=expected):
        compile_ahead(half, SMALL, capability="sm86", report=quiet)

    assert left(half) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--capability", "sm87"], "Jetson (sm87, sm110) and Hopper (sm90) stay with TensorRT"),
        (["--level", "5"], "--level is not for TensorRT for RTX: it has no effect"),
        (["--version-compatible"], "on the version that wrote them and on no other"),
        (["--hardware-compatible"], "name the GPUs with --capability instead"),
        (["--strip-weights"], "it fails without a GPU"),
        (["--dla", "0", "--batch", "1"], "it runs on no Jetson"),
        (["--timing-cache", "x"], "it measures nothing while it compiles"),
        (["--builds", "2"], "it measures nothing while it compiles"),
        (["--print-trtexec"], "trtexec builds with TensorRT"),
    ],
)
def test_what_is_not_for_this_compiler_is_bad_usage_with_the_reason(
    half: Path, arguments: list[str], reason: str
) -> None:
    result = run(half, *arguments)

    assert (result.exit_code, left(half)) == (2, [])
    assert reason in result.stderr


def test_fp8_is_never_compiled_for_a_gpu_without_it(make_bundle: MakeBundle) -> None:
    with pytest.raises(UsageError, match=r"sm86 cannot compute in fp8.*Choose from sm89, sm120, sm121"):
        compile_ahead(make_bundle(precision="fp8"), SMALL, capability="sm86,sm89", report=quiet)


@pytest.mark.parametrize("blocks", [1, 0])
def test_a_full_disk_is_one_error_and_nothing_stays(compiler: pytest.MonkeyPatch, half: Path, blocks: int) -> None:
    # The limit of a file's size stands for a full disk: writing fails in the compiler's process and in ours.
    command = [sys.executable, "-c", COMMAND, str(STAND_IN), "build", str(half), "--capability", "sm86"]

    result = subprocess.run(
        ["sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh", *command], capture_output=True, text=True, check=False
    )

    assert result.returncode == 1, result.stderr
    assert re.match(r"error: .*: File too large\n$", result.stderr)
    assert left(half) == []


def started(bundle: Path) -> "subprocess.Popen[str]":
    """A build that goes on forever, once the compiler works."""
    command = [sys.executable, "-c", COMMAND, str(STAND_IN), "build", str(bundle), "--capability", "sm86"]
    process = subprocess.Popen(command, env={**os.environ, "CALIPSO_RTX_STAND_IN": "wait"}, text=True)
    until(lambda: any(path.read_text() for path in bundle.glob("engines/.partial-*/compiler.log")))
    return process


def until(condition) -> None:
    deadline = time.perf_counter() + 30
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_at_once_and_leaves_nothing(
    compiler: pytest.MonkeyPatch, half: Path, number: int
) -> None:
    process = started(half)
    (compiling,) = children(process.pid)

    start = time.perf_counter()
    process.send_signal(number)

    assert process.wait(timeout=30) == 130
    assert time.perf_counter() - start < 2
    assert not is_running(compiling)
    assert left(half) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_build_that_is_killed_takes_the_compiler_with_it_and_the_next_one_clears_up(
    compiler: pytest.MonkeyPatch, half: Path
) -> None:
    process = started(half)
    (compiling,) = children(process.pid)

    process.kill()
    process.wait()

    until(lambda: not is_running(compiling))
    assert any(name.startswith(".partial-") for name in left(half))
    compile_ahead(half, SMALL, capability="sm86", report=quiet)
    assert [Path(name).suffix for name in left(half)] == [".plan", ".json"]


def test_the_record_is_printed_as_json(compiler: pytest.MonkeyPatch, half: Path) -> None:
    record = json.loads(run(half, "--capability", "sm86", "--json").stdout)

    assert record["compiled_for"] == [[8, 6]]
    assert record["checks"]["parity"] == "unverified"


@pytest.mark.parametrize(
    ("arguments", "expected"), [((), ["1,8,32"]), (("--batch", "1", "--batch", "2,4,8"), ["1,1,1", "2,4,8"])]
)
def test_one_profile_is_the_default(
    compiler: pytest.MonkeyPatch, half: Path, arguments: tuple[str, ...], expected: list[str]
) -> None:
    record = json.loads(run(half, "--capability", "sm86", "--json", *arguments).stdout)

    assert [",".join(map(str, each.values())) for each in record["options"]["profiles"]] == expected
