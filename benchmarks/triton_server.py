"""A real Triton server on ports of its own, with the back end that nvidia-pytriton carries: Python.

CALIPSO_TRITONSERVER names the folder pytriton/tritonserver of an unpacked nvidia-pytriton, where it is not installed;
CALIPSO_TRITON_NUMPY a folder that has numpy below 2, where this Python has a newer one.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

# What the model's process imports.
_PACKAGES = ("calipso_runtime", "numpy", "onnxruntime", "PIL")
_PATIENCE_S = 120


class TritonUnavailable(Exception):  # noqa: N818 - not an error: there is none here
    """Why no server can be started here."""


class Server(NamedTuple):
    """A server that answers: its ports, and the file with what it says."""

    http: int
    grpc: int
    log: Path


def find_server() -> Path:
    """The folder of the server.

    Raises:
        TritonUnavailable: there is none, or its Python back end does not start.
    """
    given = os.environ.get("CALIPSO_TRITONSERVER")
    found = importlib.util.find_spec("pytriton")
    if given is None and (found is None or found.origin is None):
        message = "no Triton server: set CALIPSO_TRITONSERVER to pytriton/tritonserver of an unpacked nvidia-pytriton"
        raise TritonUnavailable(message)
    folder = Path(given) if given else Path(str(found and found.origin)).parent / "tritonserver"
    stub = _stub(folder)
    command, environment = ["ldd", str(stub)], _environment(folder)
    linked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if linked.returncode != 0 or "not found" in linked.stdout:
        message = f"Triton's Python back end does not start here: {stub} needs a shared libpython{_version()}"
        raise TritonUnavailable(message)
    return folder


def python_back_end(server: Path, folder: Path) -> Path:
    """Triton's Python back end in a new folder, with what the runtime needs where its isolated Python looks: beside it.

    Raises:
        TritonUnavailable: it reads no numpy as new as this Python's.
    """
    others = os.environ.get("CALIPSO_TRITON_NUMPY")
    if others is None and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        message = "this Triton's Python back end needs numpy below 2: set CALIPSO_TRITON_NUMPY to a folder that has it"
        raise TritonUnavailable(message)
    home = Path(shutil.copytree(server / "backends" / "python", folder / "python"))
    stub = home / _stub(server).name
    shutil.copyfile(_stub(server), stub)
    stub.chmod(0o755)
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            message = f"the model needs {name}, which is not installed: pip install 'calipso[ort]'"
            raise TritonUnavailable(message)
        package = Path(others, name) if others and name == "numpy" else Path(spec.origin).parent
        (home / name).symlink_to(package)
        for libraries in package.parent.glob(f"{'pillow' if name == 'PIL' else name}.libs"):
            (home / libraries.name).symlink_to(libraries)
    return folder


@contextmanager
def running(repository: Path, model: str, folder: Path) -> Iterator[Server]:
    """Serve a model repository until the block ends.

    Args:
        repository: whose models that lack their back end are left out.
        model: that is waited for.
        folder: a new one, for the back end and the log.

    Raises:
        TritonUnavailable: see `find_server` and `python_back_end`.
        RuntimeError: the server ends, or the model is not ready in time; with what the server said.
    """
    program = find_server()
    folder.mkdir()
    backends = python_back_end(program, folder)
    http, grpc = _unused_ports(2)
    server = Server(http, grpc, folder / "log")
    binary = program / "bin" / "tritonserver"
    command = [
        *(str(binary), f"--model-repository={repository}", f"--backend-directory={backends}"),
        *("--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
        *("--allow-metrics=false", "--exit-on-error=false", "--disable-auto-complete-config"),
    ]
    binary.chmod(0o755)
    with server.log.open("w") as log:
        process = subprocess.Popen(command, env=_environment(program), stdout=log, stderr=log)
    try:
        ends = time.monotonic() + _PATIENCE_S
        while not _is_ready(http, model):
            if process.poll() is not None or time.monotonic() > ends:
                message = f"Triton does not serve {model}:\n{server.log.read_text(encoding='utf-8')}"
                raise RuntimeError(message)
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def _environment(server: Path) -> dict[str, str]:
    # The back end's Python takes the packages of the first python3 on the path: with an activated environment's numpy 2
    # it reads the lengths of texts wrongly, and dies.
    path = os.pathsep.join((str(Path(sys.base_prefix, "bin")), os.environ.get("PATH", os.defpath)))
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(server.parents[1] / "nvidia_pytriton.libs")}


def _stub(server: Path) -> Path:
    """The program that runs a model; there is one for each version of Python."""
    return server / "python_backend_stubs" / _version() / "triton_python_backend_stub"


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _unused_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _is_ready(port: int, model: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{model}/ready", timeout=1) as reply:
            return bool(reply.status == 200)  # noqa: PLR2004 - HTTP's OK
    except OSError:
        return False
