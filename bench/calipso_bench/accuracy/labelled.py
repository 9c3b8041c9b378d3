"""Labelled pictures: folders named like classes, or a CoOp split file.

A split file (CoOp, Zhou et al., IJCV 2022; KaiyangZhou/CoOp, DATASETS.md) is JSON:
`{"train": [[path, label, class name], ...], "val": ..., "test": ...}`, paths relative to the picture folder.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from calipso_export.files import read_structured
from calipso_export.photos import class_key
from calipso_runtime.commands.collect import collect
from calipso_runtime.errors import UsageError

_ENTRY_LENGTH = 3
_MOST_NAMES_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """A picture, its name in reports, and the index of its class in the bundle's labels."""

    path: Path
    name: str
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture as a folder or a split file names it."""

    name: str
    class_name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Labelled pictures, and where they come from, as JSON types."""

    pictures: tuple[Labelled, ...]
    source: dict[str, Any]


def read_labelled(folder: Path, labels: Sequence[str], *, split: Path | None, subset: str) -> LabelledData:
    """Find the pictures, and match their classes with the bundle's.

    Two names are the same class if they read the same without regard to case, with `_` and `/` as spaces.

    Args:
        folder: `folder/<class>/*`, or what a split file's paths are relative to.
        labels: the bundle's.
        split: a split file, or None.
        subset: which of its lists.

    Raises:
        UsageError: no such folder or list, no pictures, or a class that the bundle does not have.
    """
    if not folder.is_dir():
        message = f"--data {folder} is not a folder: expected a folder of pictures"
        raise UsageError(message)
    source: dict[str, Any] = {"folder": folder.name, "split": None, "subset": None, "split_sha256": None}
    if split is None:
        entries = _folder_entries(folder)
    else:
        entries = split_entries(split, subset)
        digest = hashlib.sha256(split.read_bytes()).hexdigest()
        source.update(split=split.name, subset=subset, split_sha256=digest)
    index_of = _indices(labels)
    _refuse_unknown(entries, index_of, where=str(split or folder))
    pictures = tuple(
        Labelled(path=folder / entry.name, name=entry.name, label=index_of[class_key(entry.class_name)])
        for entry in entries
    )
    return LabelledData(pictures=pictures, source=source)


def split_entries(path: Path, subset: str) -> list[Entry]:
    """One list of a split file.

    Raises:
        UsageError: it cannot be read, has no such list, or the list is empty or not of the form.
    """
    document = read_structured(path)
    lists = [name for name, value in document.items() if isinstance(value, list)] if isinstance(document, dict) else []
    if subset not in lists:
        message = f"{path} has no list {subset!r}: it has {', '.join(lists) or 'none'}. Choose one with --subset"
        raise UsageError(message)
    entries = document[subset]
    for place, entry in enumerate(entries):
        if not _is_entry(entry):
            message = f"{path}, {subset}[{place}] is {entry!r}: expected [path, label, class name]"
            raise UsageError(message)
    if not entries:
        message = f"{path} has no pictures in its list {subset!r}"
        raise UsageError(message)
    return [Entry(name=name, class_name=class_name) for name, _, class_name in entries]


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != _ENTRY_LENGTH:
        return False
    return isinstance(entry[0], str) and isinstance(entry[2], str)


def _folder_entries(folder: Path) -> list[Entry]:
    paths = [Path(path) for path in collect([str(folder)])]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    loose = [path.name for path in paths if path.parent == folder]
    if loose or not paths:
        message = (
            f"{folder} holds {'pictures without a class, ' + loose[0] if loose else 'no pictures'}: expected "
            f"{folder}/<class>/* with one sub-folder per class, or give a split file with --split"
        )
        raise UsageError(message)
    return [
        Entry(name=path.relative_to(folder).as_posix(), class_name=path.relative_to(folder).parts[0]) for path in paths
    ]


def _indices(labels: Sequence[str]) -> dict[str, int]:
    index_of = {class_key(label): index for index, label in enumerate(labels)}
    if len(index_of) < len(labels):
        message = "some of the bundle's labels differ only in case, `_` or `/`: pictures of them cannot be told apart"
        raise UsageError(message)
    return index_of


def _refuse_unknown(entries: Iterable[Entry], index_of: dict[str, int], *, where: str) -> None:
    unknown = sorted({entry.class_name for entry in entries if class_key(entry.class_name) not in index_of})
    if not unknown:
        return
    listed = ", ".join(map(repr, unknown[:_MOST_NAMES_SHOWN]))
    more = f" and {len(unknown) - _MOST_NAMES_SHOWN} more" if len(unknown) > _MOST_NAMES_SHOWN else ""
    message = (
        f"the bundle has no class for {len(unknown)} of the classes in {where}: {listed}{more}. It has "
        f"{len(index_of)} classes, which `calipso inspect` lists; rename the folders, or export a bundle with these"
    )
    raise UsageError(message)
