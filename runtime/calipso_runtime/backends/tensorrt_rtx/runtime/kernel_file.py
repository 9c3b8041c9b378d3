"""Keeps the kernels that TensorRT for RTX compiled for this GPU, so that the next process need not compile them.

    $CALIPSO_CACHE/tensorrt-rtx/sm89-1.7.1.116-1f0c9a2b/5d41402abc4b2a76.kernels

The folder stands for GPU, driver and version of the library, the file for a graph. It begins with the sha256 of its
content, which is compared before the library sees it. Nothing in it could not be made again.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from calipso_runtime import devices
from calipso_runtime.caching import cache_folder
from calipso_runtime.engines.families import TENSORRT_RTX, sm
from calipso_runtime.engines.plans import Machine

# Files beyond so many are removed, the one that was used longest ago first.
MOST_FILES = 32
_MAGIC = b"calipso kernels 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_SHOWN, _GRAPH_SHOWN = 8, 16
_SUFFIX = ".kernels"


class KernelFile:
    """The kernels of one graph on one kind of machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest: bytes | None = None

    def read(self) -> bytes | None:
        """Return what was kept; None where there is nothing. What is damaged is removed."""
        try:
            content = self.path.read_bytes()
            os.utime(self.path)
        except OSError:
            return None
        head = len(_MAGIC) + _DIGEST_BYTES
        digest = hashlib.sha256(content[head:]).digest()
        if content[:head] != _MAGIC + digest:
            self.drop()
            return None
        self._digest = digest
        return content[head:]

    def write(self, content: bytes) -> None:
        """Keep kernels. A cache that cannot be written is no error: they are compiled again."""
        digest = hashlib.sha256(content).digest()
        if digest == self._digest:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, _MAGIC + digest + content)
            self._digest = digest
            _forget_old(self.path.parent)

    def drop(self) -> None:
        """Remove what was kept."""
        self._digest = None
        with contextlib.suppress(OSError):
            self.path.unlink()


def kernel_file(graph: str, machine: Machine) -> KernelFile:
    """Return the file of a graph on a machine.

    Args:
        graph: its digest: see `PlanRecord.graph`. Not that of the plan: every build of a graph writes other bytes.
        machine: that runs it.
    """
    own = "" if machine.capability is None else sm(machine.capability)
    rest = hashlib.sha256(f"{machine.gpu}\n{devices.driver_release()}".encode()).hexdigest()[:_SHOWN]
    folder = cache_folder() / TENSORRT_RTX / f"{own}-{machine.tensorrt}-{rest}"
    name = hashlib.sha256(graph.encode()).hexdigest()[:_GRAPH_SHOWN]
    return KernelFile(folder / f"{name}{_SUFFIX}")


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _forget_old(folder: Path) -> None:
    found = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
    for path in found[:-MOST_FILES]:
        path.unlink(missing_ok=True)
