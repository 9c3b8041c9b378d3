"""The results document: its schema, how it is kept, and when an interrupted run may go on with it."""

import json
from pathlib import Path
from typing import Any

from calipso_runtime.errors import CalipsoError, UsageError

SCHEMA_VERSION = 1
KIND = "calipso-bench"
Document = dict[str, Any]
# Two runs with the same of these measure the same thing. Clocks and load of the machine may differ.
_IDENTITY = ("schema_version", "kind", "calipso", "commit", "config", "pictures")
_ENVIRONMENT_IDENTITY = ("cpu", "instruction_sets", "cores", "system", "python", "packages", "threads")


class Record:
    """A results document, and the file that it is kept in.

    Args:
        document: as `begin` made it.
        path: the file, or None to keep it in memory only.
    """

    def __init__(self, document: Document, path: Path | None) -> None:
        self.document = document
        self._path = path

    def save(self) -> None:
        """Write the whole document; a reader sees the old one or the new one.

        Raises:
            CalipsoError: the file cannot be written.
        """
        if self._path is None:
            return
        partial = self._path.with_name(f"{self._path.name}.partial")
        try:
            partial.write_text(_text(self.document), encoding="utf-8")
            partial.replace(self._path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            message = f"{self._path} cannot be written: {error.strerror or error}"
            raise CalipsoError(message) from error

    def has_cell(self, **key: object) -> bool:
        """Whether a cell was measured already."""
        return any(all(cell[name] == value for name, value in key.items()) for cell in self.document["cells"])

    def contender(self, name: str) -> Document:
        """A contender's line, added where it is not there yet."""
        line: Document
        for line in self.document["contenders"]:
            if line["name"] == name:
                return line
        line = {"name": name, "about": None, "device": None, "available": True, "reason": None, "setup_s": {}}
        self.document["contenders"].append(line)
        return line

    def samples(self, contender: str, threads: int) -> list[Document]:
        """Those of a contender's own processes so far."""
        for line in self.document["processes"]:
            if (line["contender"], line["threads"]) == (contender, threads):
                found: list[Document] = line["samples"]
                return found
        return []

    def add_sample(self, contender: str, threads: int, sample: Document) -> None:
        """Keep the sample of one process."""
        own = self.samples(contender, threads)
        if not own:
            self.document["processes"].append({"contender": contender, "threads": threads, "samples": own})
        own.append(sample)
        self.save()

    def takes_part(self, contender: str) -> bool:
        """Whether a contender is not known to be missing, or to answer wrongly."""
        checked = self.document["verification"].get(contender)
        return bool(self.contender(contender)["available"]) and (checked is None or bool(checked["passed"]))


def _text(document: Document) -> str:
    """JSON with a line for each table, cell and contender: thousands of samples must not be as many lines."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_value(value)}" for name, value in document.items()) + "\n}\n"


def _value(value: object) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(each) for each in value) + "\n]"
    return json.dumps(value)


def begin(about: Document, path: Path | None, *, overwrite: bool) -> Record:
    """A new document, or the one in the file where it is of the same measurement.

    Args:
        about: all that is known before anything is measured.
        path: the results file, or None.
        overwrite: begin anew whatever is in the file.

    Raises:
        UsageError: the file holds something else.
    """
    fresh: Document = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        **about,
        "machine": {},
        "work": None,
        "contenders": [],
        "verification": {},
        "cells": [],
        "processes": [],
        "loadgen": [],
        "finished": False,
    }
    if path is None or overwrite or not path.exists():
        return Record(fresh, path)
    kept = read(path)
    differing = differences(kept, fresh)
    if differing:
        message = (
            f"{path} holds the results of another run ({', '.join(differing)}): name another file, or begin anew "
            "with --overwrite"
        )
        raise UsageError(message)
    return Record(kept, path)


def read(path: Path) -> Document:
    """Read a results document.

    Raises:
        UsageError: it is none, or of another schema version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        message = f"{path} cannot be read as results of `calipso bench --json`: {error}"
        raise UsageError(message) from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        message = f"{path} holds no results of `calipso bench --json`"
        raise UsageError(message)
    if document.get("schema_version") != SCHEMA_VERSION:
        message = (
            f"{path} has schema version {document.get('schema_version')}, expected is {SCHEMA_VERSION}: measure again"
        )
        raise UsageError(message)
    return document


def differences(kept: Document, fresh: Document) -> list[str]:
    """What two documents differ in that makes them different measurements, in words."""
    found = [f"another {name}" for name in _IDENTITY if kept.get(name) != fresh.get(name)]
    if kept["bundle"]["sha256"] != fresh["bundle"]["sha256"]:
        found.insert(0, "another bundle")
    old, new = kept["environment"], fresh["environment"]
    found += [f"another {name}" for name in _ENVIRONMENT_IDENTITY if old.get(name) != new.get(name)]
    return found
