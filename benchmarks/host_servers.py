"""Hosts that are asked over HTTP: Triton with the repository that `calipso triton` writes, and examples/ray_serve.py.

Each has one instance with one thread. A client sends a picture's file and waits for its classes.
"""

import functools
import http.client
import importlib
import importlib.util
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.host_programs import Answers, Ask, Host, HostUnavailable, Logits
from benchmarks.triton_server import TritonUnavailable, running
from calipso_runtime.manifest import read_manifest

# A file's content in, logits by label out; a client is one connection.
Client = Callable[[bytes], Mapping[str, float]]
Connect = Callable[[], AbstractContextManager[Client]]
Server = Callable[[Path], AbstractContextManager[Connect]]
_NAME = "hosts"


def labels_of(bundle: Path) -> list[str]:
    """The classes, in the order of logits."""
    return list(read_manifest(bundle / "manifest.json").labels)


def in_order(answers: Sequence[Mapping[str, float]], labels: Sequence[str]) -> Logits:
    """Logits by label as float32 [N,K]."""
    return np.array([[answer[label] for label in labels] for answer in answers], np.float32)


def one_by_one(server: Server) -> Host:
    """A server as a host: one client, that asks when it has been answered."""

    @contextmanager
    def host(bundle: Path) -> Iterator[Ask]:
        labels = labels_of(bundle)
        with server(bundle) as connect, connect() as client:

            def ask(files: Sequence[Path]) -> Answers:
                answers, milliseconds = [], []
                for path in files:
                    start = time.perf_counter()
                    answers.append(client(path.read_bytes()))
                    milliseconds.append(1e3 * (time.perf_counter() - start))
                return Answers(in_order(answers, labels), milliseconds)

            yield ask

    return host


@contextmanager
def triton(bundle: Path) -> Iterator[Connect]:
    """Triton's Python back end, on the repository that the command writes by default, but for its threads.

    Raises:
        HostUnavailable: there is no server, or no client.
    """
    if importlib.util.find_spec("tritonclient") is None:
        message = "there is no tritonclient[http]"
        raise HostUnavailable(message)
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name, "repository")
        command = [sys.executable, "-m", "calipso_runtime", "triton", str(bundle), "-o", str(repository)]
        options = ["--form", "python", "--name", _NAME, "--threads", "1", "--top", str(len(labels_of(bundle)))]
        subprocess.run([*command, *options], check=True, capture_output=True)
        try:
            with running(repository, f"{_NAME}-python", Path(name, "server")) as server:
                yield functools.partial(_triton_client, server.http)
        except TritonUnavailable as reason:
            raise HostUnavailable(str(reason)) from reason


@contextmanager
def _triton_client(port: int) -> Iterator[Client]:
    module: Any = importlib.import_module("tritonclient.http")
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:

        def ask(content: bytes) -> Mapping[str, float]:
            tensor = module.InferInput("picture", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[content]], np.object_))
            answer = client.infer(f"{_NAME}-python", [tensor])
            labels = [label.decode() for label in answer.as_numpy("label")[0]]
            return dict(zip(labels, answer.as_numpy("logit")[0].tolist(), strict=True))

        yield ask


@contextmanager
def ray_serve(bundle: Path) -> Iterator[Connect]:
    """examples/ray_serve.py, with one replica.

    Raises:
        HostUnavailable: Ray is not installed.
        RuntimeError: the service does not start.
    """
    check_ray()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples/ray_serve.py"), str(bundle), "--port", str(port)]
    options = ["--replicas", "1", "--threads", "1", "--backend", "ort", "--top", str(len(labels_of(bundle)))]
    with tempfile.TemporaryFile("w+") as log:
        service = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            if not any(line.startswith("serving on") for line in service.stdout or ()):
                log.seek(0)
                message = f"ray_serve.py does not start:\n{log.read()}"
                raise RuntimeError(message)
            yield functools.partial(_http_client, port)
        finally:
            # Not SIGINT, which it ignores where this runs in the background of a shell.
            service.terminate()
            try:
                service.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                service.kill()
                raise


def check_ray() -> None:
    """Raise HostUnavailable where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        message = "Ray is not installed: pip install 'calipso[ray]'"
        raise HostUnavailable(message)


@contextmanager
def _http_client(port: int) -> Iterator[Client]:
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:

        def ask(content: bytes) -> Mapping[str, float]:
            connection.request("POST", "/", content)
            answer = json.load(connection.getresponse())
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return {score["label"]: score["logit"] for score in answer["predictions"]}

        yield ask
