"""Runs the compiler in a process of its own, and turns the ways in which that may end into one error each."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from calipso_runtime import devices
from calipso_runtime.backends import TensorInfo
from calipso_runtime.engines.compiler_worker import LISTING_FILE, PLAN_FILE
from calipso_runtime.engines.families import NAMES, TENSORRT_RTX, Capability
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.errors import BackendError, BackendUnavailableError, EngineBuildError

Report = Callable[[str, int, int], None]

# Isolated, with this process's own path to import from: what lies in the current folder is not imported.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "import importlib; importlib.import_module(sys.argv[2]).main()"
)
_WORKER = "calipso_runtime.engines.compiler_worker"
_ERRORS_FILE = "errors.txt"
_ERRORS: Mapping[str, type[BackendError]] = {"BackendUnavailableError": BackendUnavailableError}
_SHOWN_LINES = 3
# How the system ends a process when memory runs out; Windows has no such signal.
_KILLED = -getattr(signal, "SIGKILL", 0) or None
_NO_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler wrote.

    Attributes:
        plan: the file, in the folder that was given.
        listing: the list of layers, or nothing where the compiler did not log it.
        version: of the compiler.
        warnings: of the compiler.
        inputs: of the engine.
        outputs: of the engine.
    """

    plan: Path
    listing: str
    version: str
    warnings: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def compile_plan(
    model_path: Path, options: BuildOptions, capabilities: Sequence[Capability], folder: Path, report: Report
) -> Compiled:
    """Compile a plan in a process of its own, which ends with this call, however that ends.

    Args:
        model_path: the graph, with its external data beside it.
        options: of the build.
        capabilities: compute capabilities to compile for.
        folder: an empty folder for the plan, the log and the list of layers.
        report: called with the phase, steps done and all steps.

    Raises:
        BackendUnavailableError: TensorRT for RTX is not installed, or does not start.
        EngineBuildError: it refuses the graph, crashed, was killed or could not write.
    """
    request = {
        "model": str(model_path.absolute()),
        "options": dataclasses.asdict(options),
        "capabilities": capabilities,
        "folder": str(folder.absolute()),
    }
    errors_path = folder / _ERRORS_FILE
    with errors_path.open("wb") as errors, worker_process(_WORKER, errors) as process:
        result = _result(process, json.dumps(request), report)
        code = process.wait()
    if result is None:
        raise EngineBuildError(_how_it_ended(code, last_lines(errors_path), model_path))
    tensors = {
        side: tuple(TensorInfo(**{**each, "shape": tuple(each["shape"])}) for each in result[side])
        for side in ("inputs", "outputs")
    }
    return Compiled(
        plan=folder / PLAN_FILE,
        listing=(folder / LISTING_FILE).read_text(encoding="utf-8"),
        version=result["version"],
        warnings=tuple(result["warnings"]),
        **tensors,
    )


@contextlib.contextmanager
def worker_process(module: str, errors: IO[bytes]) -> "Iterator[subprocess.Popen[str]]":
    """Start a process for the compiler, and kill it at the end.

    It gets no signal of the terminal: an interrupted build kills it.

    Args:
        module: the name of the module whose `main` it runs.
        errors: gets what it prints as errors.
    """
    process = subprocess.Popen(  # noqa: S603 - our own code, by our own interpreter
        [sys.executable, "-I", "-c", _START, json.dumps(sys.path), module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _result(process: "subprocess.Popen[str]", request: str, report: Report) -> Mapping[str, Any] | None:
    """Send the request, pass progress on, and return the result; None where the process ended without one."""
    assert process.stdin is not None  # noqa: S101 - for the type checker: both are pipes
    assert process.stdout is not None  # noqa: S101
    # A process that died at its start has closed its end.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(request + "\n")
        process.stdin.flush()
    for line in process.stdout:
        event = json.loads(line)
        if "progress" in event:
            report(*event["progress"])
        elif "error" in event:
            raise _ERRORS.get(event["error"]["kind"], EngineBuildError)(event["error"]["message"])
        else:
            result: Mapping[str, Any] = event["result"]
            return result
    return None


def last_lines(path: Path) -> list[str]:
    """Return what a process printed last."""
    return path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_SHOWN_LINES:]


def ran_out_of_memory(code: int, said: Sequence[str]) -> bool:
    """Whether a process probably ended because memory ran out."""
    return code == _KILLED or any(word in line for word in _NO_MEMORY for line in said)


def ending(code: int) -> str:
    """Say how a process ended: "crashed (SIGSEGV)"."""
    return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


def _how_it_ended(code: int, said: Sequence[str], model_path: Path) -> str:
    """What to say of a process that ended without a result, and what to do."""
    name = NAMES[TENSORRT_RTX]
    tail = f" It printed: {' / '.join(said)}." if said else ""
    if ran_out_of_memory(code, said):
        holders = ", ".join(devices.largest_processes()) or "other processes"
        return (
            f"{name} was killed while it built an engine from {model_path}: the machine probably ran out of memory. "
            f"Most of it is held by {holders}. Close what is not needed, or build for one --batch and fewer "
            "compute capabilities at a time"
        )
    return (
        f"{name} {ending(code)} while it built an engine from {model_path}.{tail} Nothing was written. This is a "
        "defect of the compiler: build with --log FILE, whose last lines say what it was doing, or export with another "
        "--precision"
    )
