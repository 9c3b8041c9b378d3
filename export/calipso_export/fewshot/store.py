"""Keeps encoded photos between runs, so that an interrupted export goes on where it stopped.

SQLite, because it commits each photo atomically, survives being killed, and several exports may
share one file. An entry's key is a hash of everything that its value depends on.
"""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from calipso_runtime.errors import UsageError
from calipso_runtime.manifest import canonical

_FILE = "features.sqlite"
_WAIT_S = 60.0


def key_of(**parts: Any) -> str:
    """Hash of all that a value depends on; JSON types only."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


class FeatureStore:
    """A folder's encoded photos; a context manager.

    Args:
        folder: made where it does not exist.

    Raises:
        UsageError: the folder cannot be written, or its file is no database of ours.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def get(self, key: str, length: int) -> npt.NDArray[np.float32] | None:
        """A kept vector, float32 [length], or None.

        Raises:
            UsageError: the file is damaged.
        """
        with self._damage_is_said():
            row = self._database.execute("SELECT value FROM features WHERE key = ?", (key,)).fetchone()
        if row is None or not isinstance(row[0], bytes) or len(row[0]) != 4 * length:
            return None
        return np.frombuffer(row[0], dtype="<f4").astype(np.float32)

    def put(self, key: str, value: npt.NDArray[np.float32]) -> None:
        """Keep a vector. It is on disk when this returns.

        Raises:
            UsageError: the file is damaged.
        """
        # A full disk must not end an export that does not need the store to go on.
        with self._damage_is_said(), contextlib.suppress(sqlite3.OperationalError):
            self._database.execute(
                "INSERT OR REPLACE INTO features VALUES (?, ?)", (key, value.astype("<f4").tobytes())
            )

    @contextlib.contextmanager
    def _damage_is_said(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> UsageError:
        return UsageError(
            f"encoded photos cannot be kept in {self._path}: {error}. Choose a folder with --feature-cache DIR, "
            "or delete the file if it is damaged"
        )

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
