"""sha256 of files, remembered for large ones while they are the same files.

Hashing the weights takes longer than anything else of a start whose graph is already optimised. A
large file is not read again while its place, size, inode, and times of change are those that were
hashed: the rule by which version control knows that a file is unchanged. Every write changes them.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from calipso_runtime.caching import cache_folder

# Smaller files are hashed faster than they are looked up.
MIN_BYTES = 32 * 2**20
_CHUNK_BYTES = 1 << 20
_FOLDER = "hashes"


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def remembered_sha256_of(path: Path) -> str:
    """Hex sha256 of a file; of a large one that has not changed, as it was hashed before."""
    stamp = _stamp(path)
    if stamp[0] < MIN_BYTES:
        return sha256_of(path)
    note = cache_folder() / _FOLDER / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text(encoding="ascii"))
        if known["stamp"] == stamp:
            return str(known["sha256"])
    digest = sha256_of(path)
    if _stamp(path) == stamp:
        _remember(note, json.dumps({"stamp": stamp, "sha256": digest}))
    return digest


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _remember(note: Path, text: str) -> None:
    """A cache that cannot be written is no error: the file is hashed again."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=note.parent, suffix=".partial")
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(text)
        Path(name).replace(note)
