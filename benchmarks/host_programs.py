"""Hosts that are asked by their files' names: Python, examples/cpp and examples/web. Each is built or started here.

A host is a function: of a bundle, it gives what answers files.
"""

import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks import ROOT
from benchmarks.chromium import Chromium, find_chromium
from calipso_runtime import load
from calipso_runtime.manifest import read_manifest

WEB = ROOT / "examples" / "web"
_PATIENCE_S = 900.0

Logits = npt.NDArray[np.float32]


class Answers(NamedTuple):
    """What a host says of files: logits float32 [N,K], labels in order, and the time from file to answer of each."""

    logits: Logits
    milliseconds: list[float]


Ask = Callable[[Sequence[Path]], Answers]
Host = Callable[[Path], AbstractContextManager[Ask]]


class HostUnavailable(Exception):  # noqa: N818 - not an error: the cell stays empty
    """Why this host cannot be measured here."""


@contextmanager
def python(bundle: Path) -> Iterator[Ask]:
    """The runtime, on ONNX Runtime."""
    with load(bundle, backend="ort", threads=1, keep_optimised=False) as classifier:

        def ask(files: Sequence[Path]) -> Answers:
            logits, milliseconds = [], []
            for path in files:
                start = time.perf_counter()
                logits.append(classifier.logits(str(path)))
                milliseconds.append(1e3 * (time.perf_counter() - start))
            return Answers(np.stack(logits), milliseconds)

        yield ask


@contextmanager
def cpp(bundle: Path) -> Iterator[Ask]:
    """examples/cpp, built here."""
    cmake = shutil.which("cmake")
    if cmake is None:
        message = "there is no CMake"
        raise HostUnavailable(message)
    with tempfile.TemporaryDirectory() as name:
        for command in (["-S", str(ROOT / "examples/cpp"), "-B", name], ["--build", name]):
            done = subprocess.run([cmake, *command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                message = (
                    "it was not built: no headers of ONNX Runtime (ONNXRUNTIME_ROOT), or another library is missing"
                )
                raise HostUnavailable(message)
        labels = read_manifest(bundle / "manifest.json").labels
        program = [f"{name}/calipso-pixels", "--threads", "1", "--times", "--top", str(len(labels)), str(bundle)]

        def ask(files: Sequence[Path]) -> Answers:
            # The first picture is asked twice: what a process does but once is not counted.
            command = [*program, *map(str, (files[0], *files))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            return answers_of([json.loads(line) for line in done.stdout.splitlines()[1:]], labels)

        yield ask


@contextmanager
def served(bundle: Path) -> Iterator[Chromium]:
    """examples/web in a headless Chromium, with one thread, loaded."""
    program = find_chromium()
    if program is None or not (WEB / "node_modules/onnxruntime-web").is_dir():
        message = f"there is no {'Chromium' if program is None else 'node_modules in examples/web'}"
        raise HostUnavailable(message)
    sys.path.insert(0, str(WEB))
    server = importlib.import_module("serve").server(bundle, port=0, isolated=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as name, Chromium(program, Path(name), "--hide-scrollbars") as page:
            page.open(f"http://localhost:{server.server_port}/?engine=wasm&threads=1")
            yield page
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser(bundle: Path) -> Iterator[Ask]:
    """The page, whose input is given the files."""
    labels = read_manifest(bundle / "manifest.json").labels
    with served(bundle) as page:

        def ask(files: Sequence[Path]) -> Answers:
            return answers_of(asked(page, files), labels)

        yield ask


def asked(page: Chromium, files: Sequence[Path]) -> list[dict[str, Any]]:
    """What the page says of files.

    Raises:
        TimeoutError: it does not answer.
    """
    count: int = page.evaluate("import('./page.js').then(page => page.answers.length)")
    page.choose("#files", files)
    ends = time.monotonic() + _PATIENCE_S
    while page.evaluate("import('./page.js').then(page => page.answers.length)") < count + len(files):
        if time.monotonic() > ends:
            message = f"the page does not answer {len(files)} files in {_PATIENCE_S:.0f} s"
            raise TimeoutError(message)
        time.sleep(0.1)
    found: list[dict[str, Any]] = page.evaluate(f"import('./page.js').then(page => page.answers.slice({count}))")
    return found


def answers_of(lines: Sequence[dict[str, Any]], labels: Sequence[str]) -> Answers:
    """JSON lines with all classes and times, as arrays."""
    by_label = [{score["label"]: score["logit"] for score in line["predictions"]} for line in lines]
    logits = np.array([[logits[label] for label in labels] for logits in by_label], np.float32)
    return Answers(logits, [line["times"]["decode_ms"] + line["times"]["run_ms"] for line in lines])


def unseen(reason: str) -> Host:
    """A host of which nothing was seen, and why."""

    @contextmanager
    def host(_: Path) -> Iterator[Ask]:
        raise HostUnavailable(reason)
        yield

    return host
