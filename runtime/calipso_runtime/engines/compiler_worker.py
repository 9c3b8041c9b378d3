"""The process that compiles: whatever a defect of the compiler ends, it ends no other process.

It reads one request, a line of JSON, from its input, and writes its progress and its result as lines of JSON. The plan
and the list of layers are files. It ends when its input does, for then whoever wanted the plan is gone.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.errors import CalipsoError, EngineBuildError

PLAN_FILE, LISTING_FILE, LOG_FILE = "model.plan", "layers.txt", "compiler.log"
_ABANDONED = 1


def main() -> None:
    """Compile what the request says."""
    # What libraries print must not come between the events.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as events:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        request = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_input, daemon=True).start()
        write_no_core()
        lock = threading.Lock()

        def send(**event: object) -> None:
            with lock:
                events.write(json.dumps(event) + "\n")
                events.flush()

        try:
            send(result=_compiled(request, lambda *progress: send(progress=progress)))
        except CalipsoError as error:
            send(error={"kind": type(error).__name__, "message": str(error)})


def _compiled(request: Mapping[str, Any], report: Any) -> dict[str, Any]:
    # The first import of the compiler: it raises where it is not installed.
    from calipso_runtime.backends.tensorrt_rtx.bindings import version
    from calipso_runtime.backends.tensorrt_rtx.builder import Request, build_plan
    from calipso_runtime.backends.tensorrt_rtx.callbacks import Log

    folder = Path(request["folder"])
    profiles = tuple(BatchRange(**each) for each in request["options"]["profiles"])
    with _log_file(folder / LOG_FILE) as stream:
        log = Log(stream)
        built = build_plan(
            Request(
                model_path=Path(request["model"]),
                options=BuildOptions(**{**request["options"], "profiles": profiles}),
                capabilities=[(major, minor) for major, minor in request["capabilities"]],
            ),
            log,
            report,
        )
    try:
        (folder / PLAN_FILE).write_bytes(built.plan)
        (folder / LISTING_FILE).write_text(log.listing, encoding="utf-8")
    except OSError as error:
        message = f"the engine cannot be written to {folder.parent}: {error.strerror or error}"
        raise EngineBuildError(message) from error
    return {
        "version": version(),
        "warnings": log.warnings,
        "inputs": [dataclasses.asdict(each) for each in built.inputs],
        "outputs": [dataclasses.asdict(each) for each in built.outputs],
    }


@contextlib.contextmanager
def _log_file(path: Path) -> Any:
    """A log that holds every line however the process ends, as far as the disk takes it."""
    stream: TextIO = path.open("w", encoding="utf-8", errors="replace", buffering=1)
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError):
            stream.close()


def _end_with_input() -> None:
    # Not through the buffered stream, which the interpreter locks when it ends.
    while os.read(0, 1):
        pass
    os._exit(_ABANDONED)


def write_no_core() -> None:
    """A crash of the compiler is reported, and leaves no file of its memory."""
    with contextlib.suppress(ImportError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))
