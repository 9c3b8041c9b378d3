"""The process that asks the compiler about graphs, one after the other, until its input ends or the compiler crashes.

It writes the version of the compiler, or why there is none, as a line of JSON. Then it reads requests from its input, a
line of JSON each, and answers each with a line of JSON.
"""

import dataclasses
import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calipso_runtime.engines.compiler_worker import write_no_core
from calipso_runtime.errors import CalipsoError


def main() -> None:
    """Answer requests."""
    requests: queue.Queue[str] = queue.Queue()
    # What libraries print must not come between the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        threading.Thread(target=_read, args=(requests,), daemon=True).start()
        write_no_core()

        def send(answer: Mapping[str, Any]) -> None:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

        send(_greeting())
        while True:
            send(_answer(json.loads(requests.get())))


def _read(requests: "queue.Queue[str]") -> None:
    """Pass requests on. When the input ends, whoever wanted the answers is gone."""
    # Not through the buffered stream, which the interpreter locks when it ends.
    with os.fdopen(os.dup(0), encoding="utf-8") as stream:
        for line in stream:
            requests.put(line)
    os._exit(0)


def _greeting() -> dict[str, Any]:
    try:
        # The first import of the compiler: it raises where it is not installed.
        from calipso_runtime.backends.tensorrt_rtx.bindings import version
    except CalipsoError as error:
        return _failed(error)
    return {"version": version()}


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    from calipso_runtime.backends.tensorrt_rtx.judge import refusals

    capabilities = [(major, minor) for major, minor in request["capabilities"]]
    try:
        found = refusals(Path(request["model"]), capabilities)
    except CalipsoError as error:
        return _failed(error)
    return {"refusals": [dataclasses.asdict(each) for each in found]}


def _failed(error: CalipsoError) -> dict[str, Any]:
    return {"error": {"kind": type(error).__name__, "message": str(error)}}
