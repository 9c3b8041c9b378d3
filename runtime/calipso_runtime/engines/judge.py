"""Asks TensorRT for RTX whether it takes a graph, in a process that is started again where it crashes."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from calipso_runtime.engines.compiler_process import ending, last_lines, ran_out_of_memory, worker_process
from calipso_runtime.engines.families import NAMES, TENSORRT_RTX, Capability
from calipso_runtime.errors import BackendUnavailableError, EngineBuildError

if TYPE_CHECKING:
    import subprocess

CRASH = "crash"
_WORKER = "calipso_runtime.engines.judge_worker"
_ERRORS_FILE = "errors.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """One reason why a graph gives no engine.

    Attributes:
        by: "parser", "builder", or "crash" where the compiler died.
        name: of the node; empty where it has none, or where the compiler names no node.
        operator: of the node; empty where the compiler names no node.
        place: of the node among those of the graph; None where it is not known, or the node is inside of another one.
        wrong: what the compiler says.
    """

    by: str
    wrong: str
    name: str = ""
    operator: str = ""
    place: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the compiler says about a graph.

    Attributes:
        version: of the compiler: "1.7.1.116".
        refusals: why the graph gives no engine; empty where it gives one.
    """

    version: str
    refusals: tuple[Refusal, ...]


class Judge(contextlib.AbstractContextManager["Judge"]):
    """Judges graphs one after the other. Its process starts with the first graph and ends with the context."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._errors = Path()
        self._version = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._stop()

    def judge(self, model_path: Path, capabilities: Sequence[Capability]) -> Verdict:
        """Parse and build a graph.

        Args:
            model_path: a `.onnx`, with its external data beside it.
            capabilities: compute capabilities to compile for.

        Raises:
            BackendUnavailableError: TensorRT for RTX is not installed, or does not start.
            EngineBuildError: it does not compile for a capability, or memory ran out.
        """
        process = self._process or self._start()
        answer = _answer(process, {"model": str(model_path.absolute()), "capabilities": capabilities})
        if answer is None:
            return Verdict(version=self._version, refusals=(self._crashed(process, model_path),))
        _raise_error(answer)
        return Verdict(version=self._version, refusals=tuple(Refusal(**each) for each in answer["refusals"]))

    def _crashed(self, process: "subprocess.Popen[str]", model_path: Path) -> Refusal:
        code, said = process.wait(), last_lines(self._errors)
        self._stop()
        if ran_out_of_memory(code, said):
            message = (
                f"{NAMES[TENSORRT_RTX]} was killed while it built an engine from {model_path}: the machine probably "
                "ran out of memory. Close what is not needed"
            )
            raise EngineBuildError(message)
        return Refusal(by=CRASH, wrong=f"the compiler {ending(code)}{_printed(said)}")

    def _start(self) -> "subprocess.Popen[str]":
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="calipso-judge-")))
        self._errors = folder / _ERRORS_FILE
        errors = self._held.enter_context(self._errors.open("wb"))
        process = self._held.enter_context(worker_process(_WORKER, errors))
        greeting = _answer(process)
        if greeting is None:
            message = (
                f"{NAMES[TENSORRT_RTX]} does not start: its process {ending(process.wait())}"
                f"{_printed(last_lines(self._errors))}. Install it again: pip install 'calipso[rtx]'"
            )
            raise BackendUnavailableError(message)
        _raise_error(greeting)
        self._version, self._process = greeting["version"], process
        return process

    def _stop(self) -> None:
        self._held.close()
        self._process = None


def _answer(process: "subprocess.Popen[str]", request: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
    """Send a request, if there is one, and return the answer; None where the process ended without one."""
    assert process.stdin is not None  # noqa: S101 - for the type checker: both are pipes
    assert process.stdout is not None  # noqa: S101
    if request is not None:
        # A process that died has closed its end.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
    line = process.stdout.readline()
    return json.loads(line) if line else None


def _raise_error(answer: Mapping[str, Any]) -> None:
    if "error" in answer:
        unavailable = answer["error"]["kind"] == BackendUnavailableError.__name__
        raise (BackendUnavailableError if unavailable else EngineBuildError)(answer["error"]["message"])


def _printed(said: Sequence[str]) -> str:
    return f"; it printed: {' / '.join(said)}" if said else ""
