"""Remembers the trials of a search, so that an interrupted repair goes on where it stopped."""

import json
from collections.abc import Iterable
from pathlib import Path

from calipso_export.precision.repair import Trial


class Trials:
    """A file of one line per trial, in the cache folder; what cannot be read in it is tried again.

    Args:
        path: the file; its name tells graph, precision, pictures and gates.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[frozenset[str], Trial] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    def find(self, nodes: Iterable[str]) -> Trial | None:
        """The trial of these nodes, or None."""
        return self._known.get(frozenset(nodes))

    def add(self, nodes: Iterable[str], trial: Trial) -> None:
        """Note a trial at once: the next may be interrupted."""
        chosen = frozenset(nodes)
        self._known[chosen] = trial
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([sorted(chosen), trial.passed, trial.error]) + "\n")

    def _read(self, line: str) -> None:
        try:
            nodes, passed, error = json.loads(line)
            self._known[frozenset(map(str, nodes))] = Trial(passed=bool(passed), error=float(error))
        except (ValueError, TypeError):
            return
