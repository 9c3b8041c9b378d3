"""Keeps graphs as ONNX Runtime optimised them for this CPU, so that the next process maps them into memory.

Optimising and re-ordering the weights of a ViT-B takes longer than everything else of a start, and
twice the memory. The result depends on the graph, on onnxruntime's version and on the CPU's
instructions, and is kept under a key of these. An entry is written in a folder of its own and
renamed when it is complete; it holds nothing that could not be made again.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from calipso_runtime import devices
from calipso_runtime.caching import cache_folder

# Of an entry: the graph, its weights, and what they looked like when they were complete.
GRAPH_FILE = "graph.onnx"
WEIGHTS_FILE = "graph.bin"
ENTRY_FILE = "entry.json"
# Smaller graphs are optimised faster than they are looked up.
MIN_BYTES = 32 * 2**20
# Entries beyond so many are removed, the one that was used longest ago first.
MOST_ENTRIES = 8
SWITCH_VARIABLE = "CALIPSO_OPTIMISED_CACHE"
_FOLDER = "optimised"


def is_worth_it(model_path: Path, size_bytes: int) -> bool:
    """Whether a graph of this size is kept at all; CALIPSO_OPTIMISED_CACHE=0 switches the cache off."""
    return model_path.is_file() and size_bytes >= MIN_BYTES and os.environ.get(SWITCH_VARIABLE, "1") != "0"


def entry_folder(digest: str, *, graph: str, engine: str) -> Path:
    """Where the optimised form of a graph lies on this machine, whether or not it is there.

    Args:
        digest: of the bundle.
        graph: which of its graphs.
        engine: name and version of what optimised it.
    """
    parts = (digest, graph, engine, platform.system(), platform.machine(), devices.cpu_name(), devices.cpu_flags())
    return cache_folder() / _FOLDER / hashlib.sha256("\n".join(parts).encode()).hexdigest()


def find(folder: Path) -> tuple[Path, Mapping[str, str]] | None:
    """The optimised graph of an entry and the metadata kept with it; None where it is missing or incomplete."""
    try:
        entry = json.loads((folder / ENTRY_FILE).read_text(encoding="utf-8"))
        for name, size_bytes in entry["files"].items():
            if (folder / name).stat().st_size != size_bytes:
                return None
        os.utime(folder)
        return folder / GRAPH_FILE, {str(key): str(value) for key, value in entry["metadata"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store(folder: Path, make: Callable[[Path], Mapping[str, str]]) -> bool:
    """Write an entry.

    Args:
        folder: as `entry_folder` says.
        make: writes GRAPH_FILE and WEIGHTS_FILE into the folder given, and returns the graph's metadata.

    Returns:
        Whether it is there now. A cache that cannot be written is no error: the graph is optimised again.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="new.", dir=folder.parent))
    except OSError:
        return False
    try:
        metadata = make(work)
        files = {path.name: path.stat().st_size for path in work.iterdir()}
        (work / ENTRY_FILE).write_text(json.dumps({"files": files, "metadata": dict(metadata)}), encoding="utf-8")
        remove(folder)
        work.rename(folder)
        _forget_old(folder.parent)
    except OSError:
        return folder.is_dir()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def remove(folder: Path) -> None:
    """Drop an entry; one that another process maps stays readable to it."""
    shutil.rmtree(folder, ignore_errors=True)


def _forget_old(folder: Path) -> None:
    with contextlib.suppress(OSError):
        entries = sorted((path for path in folder.iterdir() if len(path.name) == len("0" * 64)), key=_used)
        for path in entries[:-MOST_ENTRIES]:
            remove(path)


def _used(folder: Path) -> float:
    return folder.stat().st_mtime
