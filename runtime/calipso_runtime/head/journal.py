"""The journal of what a bundle was taught: changes, each a record that is there as a whole or not at all.

    taught/changes     records: "CTR1", length of the payload (8 bytes), payload, its blake2b (16 bytes)
    taught/.teaching   the lock of the process that teaches

A payload is one line of JSON and the bytes of the arrays that it names. The first record tells which head the
changes are to. Records are appended and synced to the disk before they are acknowledged; a rewritten journal is
renamed into place. So a cut at any byte loses at most the records that nobody was told of.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from calipso_runtime.errors import BundleCorruptError, BundleError, TeachingError
from calipso_runtime.locks import lock
from calipso_runtime.manifest import canonical

FOLDER = "taught"
CHANGES_FILE = "changes"
_LOCK_FILE = ".teaching"
_MAGIC, _DIGEST_BYTES = b"CTR1", 16
_HEADER = struct.Struct("<4sQ")
_BEGIN, _VERSION = "begin", 1
# What a record may hold, written as it lies in memory.
_DTYPES: Mapping[str, type[np.generic]] = {"<f4": np.float32, "<i8": np.int64, "|b1": np.bool_}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One change.

    Attributes:
        what: "teach", "forget", "relabel", "head".
        fields: of it, plain JSON types.
        arrays: of it, by name.
    """

    what: str
    fields: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Journal:
    """What was read of a journal.

    Attributes:
        records: whole ones, in order, without the first.
        size_bytes: of what was whole, the first record included; 0 where there is none.
        digest: of these bytes.
        lost: what was cut off behind it, in words, or None.
    """

    records: tuple[Record, ...] = ()
    size_bytes: int = 0
    digest: bytes = b""
    lost: str | None = None


def read_journal(folder: Path, head: str) -> Journal:
    """Read what a bundle was taught.

    Args:
        folder: where the journal is kept.
        head: which head it has to be to: the sha256 of its file.

    Raises:
        BundleCorruptError: it is damaged before its end, or belongs to another head.
    """
    path = folder / CHANGES_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Journal()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise BundleError(message) from error
    records, end = [], 0
    while (found := _record_at(content, end, path)) is not None:
        record, end = found
        records.append(record)
    lost = None
    if end < len(content):
        if _is_followed(content, end, path):
            message = (
                f"{path} is damaged at byte {end}, and whole records follow: it was edited, or the disk failed. "
                "Put a copy in its place; without the file the bundle is as it was exported"
            )
            raise BundleCorruptError(message)
        lost = f"{path} ends in the middle of a record: {len(content) - end} bytes at its end are not read"
    if not records:
        return Journal(lost=lost)
    _check_first(records[0], head, path)
    return Journal(records=tuple(records[1:]), size_bytes=end, digest=_digest(content[:end]), lost=lost)


class JournalWriter:
    """Holds a journal's lock, and writes to it.

    Args:
        folder: where the journal is kept.
        head: see `read_journal`.
        known: as it was read before: what is behind its whole records is cut off.

    Raises:
        TeachingError: another process holds the lock, has changed the journal, or the folder cannot be written.
    """

    def __init__(self, folder: Path, head: str, known: Journal) -> None:
        self.size_bytes = known.size_bytes
        self._path = folder / CHANGES_FILE
        self._head = head
        self._lock = _held(folder)
        try:
            self._check_unchanged(known)
            self._trim()
        except BaseException:
            self.close()
            raise

    def append(self, records: Sequence[Record]) -> None:
        """Write records behind the others; they are on the disk when this returns.

        Raises:
            TeachingError: they could not be written; what was written of them is taken back.
        """
        first = [] if self.size_bytes else [_first(self._head)]
        content = b"".join(map(_encoded, [*first, *records]))
        try:
            # Behind the last whole record, whatever a failed write left there.
            with self._path.open("r+b" if self._path.exists() else "xb") as stream:
                stream.seek(self.size_bytes)
                stream.truncate()
                stream.write(content)
                stream.flush()
                _sync(stream.fileno())
            if first:
                _sync_folder(self._path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._trim()
            raise self._unwritten(error) from error
        self.size_bytes += len(content)

    def rewrite(self, records: Sequence[Record]) -> None:
        """Put these records in the place of all others, at once.

        Raises:
            TeachingError: they could not be written; the journal is as it was.
        """
        content = b"".join(map(_encoded, [_first(self._head), *records]))
        partial = self._path.with_name(f"{CHANGES_FILE}.partial")
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                _sync(stream.fileno())
            partial.replace(self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._unwritten(error) from error
        self.size_bytes = len(content)

    def close(self) -> None:
        """Let others teach. Closing twice is allowed."""
        if self._lock is not None:
            (self._path.parent / _LOCK_FILE).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()

    def _check_unchanged(self, known: Journal) -> None:
        if read_journal(self._path.parent, self._head).digest != known.digest:
            message = f"{self._path} was changed by another process since it was read: load the bundle again"
            raise TeachingError(message)

    def _trim(self) -> None:
        """Cut off what is behind the last whole record, and a rewrite that was not finished."""
        self._path.with_name(f"{CHANGES_FILE}.partial").unlink(missing_ok=True)
        if self._path.exists() and self._path.stat().st_size > self.size_bytes:
            with self._path.open("r+b") as stream:
                stream.truncate(self.size_bytes)
                _sync(stream.fileno())

    def _unwritten(self, error: OSError) -> TeachingError:
        return TeachingError(f"{self._path} cannot be written: {error.strerror or error}. Nothing of it was kept")


def _held(folder: Path) -> TextIO | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream, is_held = lock(folder / _LOCK_FILE)
    except OSError as error:
        message = (
            f"{folder} cannot be written ({error.strerror or error}): where the bundle is read-only, name a folder for "
            "what it is taught: load(..., taught=FOLDER), or --taught FOLDER"
        )
        raise TeachingError(message) from error
    if not is_held:
        with stream:
            stream.seek(0)
            message = (
                f"another process or classifier (process {stream.read().strip() or 'unknown'}) is teaching {folder}: "
                "one at a time. Close that one, then load the bundle again"
            )
            raise TeachingError(message)
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    return stream


def _first(head: str) -> Record:
    return Record(what=_BEGIN, fields={"version": _VERSION, "head": head})


def _check_first(record: Record, head: str, path: Path) -> None:
    if record.what != _BEGIN or not isinstance(record.fields.get("version"), int):
        message = f"{path} is no journal of a taught bundle: it does not say what it changes"
        raise BundleCorruptError(message)
    if record.fields["version"] > _VERSION:
        message = f"{path} is of version {record.fields['version']}, this one reads up to {_VERSION}: upgrade calipso"
        raise BundleCorruptError(message)
    if record.fields.get("head") != head:
        message = (
            f"{path} was taught to another export of this bundle: its classes and keys are other ones. Move it away, "
            "and teach this one"
        )
        raise BundleCorruptError(message)


def _encoded(record: Record) -> bytes:
    listed, parts = [], []
    for name, values in record.arrays.items():
        array = np.ascontiguousarray(values)
        listed.append([name, array.dtype.str, list(array.shape)])
        parts.append(array.tobytes())
    line = canonical({**record.fields, "what": record.what, "arrays": listed}).encode()
    payload = b"".join([line, b"\n", *parts])
    return b"".join([_HEADER.pack(_MAGIC, len(payload)), payload, _digest(payload)])


def _record_at(content: bytes, start: int, path: Path) -> tuple[Record, int] | None:
    """The record that begins there, and where it ends; None where no whole one does."""
    if len(content) - start < _HEADER.size:
        return None
    magic, length = _HEADER.unpack_from(content, start)
    first = start + _HEADER.size
    end = first + length + _DIGEST_BYTES
    if magic != _MAGIC or end > len(content):
        return None
    payload = content[first : first + length]
    if _digest(payload) != content[end - _DIGEST_BYTES : end]:
        return None
    return _decoded(payload, path), end


def _decoded(payload: bytes, path: Path) -> Record:
    """Whole it is; that its content is right is another question."""
    try:
        line, _, rest = payload.partition(b"\n")
        fields = json.loads(line)
        arrays, at = {}, 0
        for name, dtype, shape in fields.pop("arrays"):
            count = int(np.prod(shape, dtype=np.int64))
            arrays[str(name)] = np.frombuffer(rest, _DTYPES[dtype], count, at).reshape(shape)
            at += arrays[str(name)].nbytes
        return Record(what=str(fields.pop("what")), fields=fields, arrays=arrays)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{path} holds a record that this version cannot read ({error}): upgrade calipso"
        raise BundleCorruptError(message) from error


def _is_followed(content: bytes, start: int, path: Path) -> bool:
    """Whether a whole record begins anywhere behind a place."""
    at = content.find(_MAGIC, start + 1)
    while at >= 0:
        if _record_at(content, at, path) is not None:
            return True
        at = content.find(_MAGIC, at + 1)
    return False


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def _sync(handle: int) -> None:
    os.fsync(handle)


def _sync_folder(folder: Path) -> None:
    """A name that was just made or changed has to be on the disk too. Windows syncs no folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
