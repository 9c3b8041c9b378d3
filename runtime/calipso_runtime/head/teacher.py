"""Teaches a head: takes changes one by one, calibrates, and keeps them in the journal.

A change is first made beside the head in use, then taken by the classifier, then noted; `save` puts what was noted
on the disk. The bundle's own files are never touched.
"""

import dataclasses
import difflib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calipso_runtime.bundle import Bundle
from calipso_runtime.errors import (
    BundleCorruptError,
    CalipsoError,
    CalipsoWarning,
    InputError,
    SignatureError,
    TeachingError,
    UsageError,
)
from calipso_runtime.head.calibrate import Calibration, calibrate
from calipso_runtime.head.classes import Float32, Head
from calipso_runtime.head.file import read_head
from calipso_runtime.head.journal import FOLDER, Journal, JournalWriter, Record, read_journal
from calipso_runtime.head.search import SAME_PICTURE, START
from calipso_runtime.manifest import Manifest

# A journal is rewritten when it is this many times as large as what it amounts to.
_MOST_GROWTH = 4
_LEAST_GROWN_BYTES = 2**20
_MOST_PAIRS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A change that was made and is not in use yet.

    Attributes:
        head: with it.
        record: of it.
        calibration: how alpha and beta were chosen; None where they stayed.
    """

    head: Head
    record: Record
    calibration: Calibration | None = None


class Teacher:
    """A head that changes. Its methods are called by one thread at a time.

    Args:
        head: as it is now.
        exported: as it was exported.
        folder: where the journal is kept; None for nowhere.
        digest: sha256 of the exported head's file.
        journal: as it was read.

    Attributes:
        head: as it is now.
        exported: as it was exported.
    """

    def __init__(self, head: Head, exported: Head, folder: Path | None, digest: str, journal: Journal) -> None:
        self.head = head
        self.exported = exported
        self._folder = folder
        self._digest = digest
        self._journal = journal
        self._writer: JournalWriter | None = None
        self._pending: list[Record] = []

    @property
    def has_unsaved(self) -> bool:
        """Whether there are changes that `save` was not asked to keep."""
        return bool(self._pending) and self._folder is not None

    def begin(self) -> None:
        """Take the journal's lock, until `close`.

        Raises:
            TeachingError: another process teaches, or did since this one read the journal; or nothing can be written.
        """
        if self._folder is not None and self._writer is None:
            self._writer = JournalWriter(self._folder, self._digest, self._journal)

    def taught(self, label: str, features: Float32, text: Float32 | None, *, add: bool, recalibrate: bool) -> Change:
        """A class with these keys.

        Args:
            label: of the class.
            features: float32 [N,D], L2-normalised.
            text: float32 [D], L2-normalised: the class's text feature, or None.
            add: whether the class may be there already.
            recalibrate: whether alpha and beta are chosen anew.
        """
        _check_label(label)
        if label in self.head.labels and not add:
            message = f"there is a class {label!r}: give add=True (--add) to add photos to it, or forget it first"
            raise UsageError(message)
        _warn_of_copies(self.head, label, features)
        head = self.head.with_keys(label, features, text)
        if head.counts[head.index(label)] == 1:
            message = f"{label!r} has one photo only: it cannot be held out, so alpha and beta are chosen without it"
            warnings.warn(message, CalipsoWarning, stacklevel=5)
        head, calibration = _calibrated(head, recalibrate=recalibrate)
        arrays = {"features": features} if text is None else {"features": features, "text": text}
        return Change(head=head, record=_record("teach", head, arrays, label=label), calibration=calibration)

    def forgotten(self, label: str, *, recalibrate: bool) -> Change:
        """Without a class."""
        self._check_known(label)
        head, calibration = _calibrated(self.head.without(label), recalibrate=recalibrate)
        return Change(head=head, record=_record("forget", head, label=label), calibration=calibration)

    def relabelled(self, old: str, new: str) -> Change:
        """With another name of a class."""
        self._check_known(old)
        _check_label(new)
        head = self.head.renamed(old, new)
        return Change(head=head, record=_record("relabel", head, label=old, to=new))

    def take(self, change: Change) -> None:
        """A change is in use."""
        self.head = change.head
        self._pending.append(change.record)

    def save(self) -> None:
        """Put every change on the disk. What was forgotten is gone from there as well.

        Raises:
            TeachingError: it could not be written, or there is no folder for it; the changes are still pending.
        """
        if not self._pending:
            return
        if self._folder is None:
            message = "this classifier was loaded with taught=False: what it is taught is not kept"
            raise TeachingError(message)
        self.begin()
        assert self._writer is not None  # noqa: S101 - begin has just opened it
        whole = _whole(self.head)
        whole_bytes = sum(each.nbytes for each in whole.arrays.values())
        is_grown = self._writer.size_bytes > max(_LEAST_GROWN_BYTES, _MOST_GROWTH * whole_bytes)
        if is_grown or any(record.what == "forget" for record in self._pending):
            self._writer.rewrite([whole])
        else:
            self._writer.append(self._pending)
        self._pending.clear()

    def close(self) -> None:
        """Let others teach. Closing twice is allowed."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _check_known(self, label: str) -> None:
        if label not in self.head.labels:
            near = difflib.get_close_matches(label, self.head.labels, n=1)
            hint = f": did you mean {near[0]!r}?" if near else f"; it has {len(self.head.labels)} others"
            message = f"there is no class {label!r}{hint}"
            raise UsageError(message)


def open_teacher(bundle: Bundle, manifest: Manifest, taught: str | Path | bool) -> Teacher:  # noqa: FBT001 - load's own
    """Read the head of a bundle and what it was taught.

    Args:
        bundle: whose head is an input.
        manifest: what it says.
        taught: the folder of the journal; True for the one in the bundle, False for none.

    Warns:
        CalipsoWarning: the journal ends in the middle of a record.

    Raises:
        BundleCorruptError: the head or the journal is damaged.
        SignatureError: a signature is required, and the bundle was taught in its own folder.
    """
    exported = read_head(bundle.model_path, manifest)
    digest = str(manifest.head["sha256"])
    if taught is False:
        return Teacher(exported, exported, None, digest, Journal())
    folder = folder_of(bundle) if taught is True else Path(taught)
    journal = read_journal(folder, digest)
    if taught is True and bundle.signed_by is not None and journal.size_bytes:
        message = (
            f"{folder} holds what the bundle was taught, which no signature covers: whoever can write there decides "
            "what it answers. Load it with taught=False to leave that aside, or name the folder to take it all the same"
        )
        raise SignatureError(message)
    if journal.lost is not None:
        message = f"{journal.lost}. Nothing that was saved is missing; the change that was being saved is"
        warnings.warn(message, CalipsoWarning, stacklevel=3)
    return Teacher(replayed(exported, journal, folder), exported, folder, digest, journal)


def folder_of(bundle: Bundle) -> Path:
    """Where what a bundle, or a bare `.onnx`, was taught is kept where no other folder is named."""
    return (bundle.path if bundle.path.is_dir() else bundle.path.parent) / FOLDER


def replayed(head: Head, journal: Journal, folder: Path) -> Head:
    """A head with the changes of a journal."""
    try:
        for record in journal.records:
            head = _REPLAYS[record.what](head, record.fields, record.arrays)
    except (CalipsoError, LookupError, TypeError, ValueError) as error:
        message = f"{folder} holds changes that do not fit this bundle ({error}): move it away, and teach again"
        raise BundleCorruptError(message) from error
    return head


def _replay_teach(head: Head, fields: Mapping[str, Any], arrays: Mapping[str, Any]) -> Head:
    head = head.with_keys(str(fields["label"]), arrays["features"], arrays.get("text"))
    return head.weighed(float(fields["alpha"]), float(fields["beta"]))


def _replay_forget(head: Head, fields: Mapping[str, Any], _: Mapping[str, Any]) -> Head:
    return head.without(str(fields["label"])).weighed(float(fields["alpha"]), float(fields["beta"]))


def _replay_relabel(head: Head, fields: Mapping[str, Any], _: Mapping[str, Any]) -> Head:
    return head.renamed(str(fields["label"]), str(fields["to"]))


def _replay_whole(head: Head, fields: Mapping[str, Any], arrays: Mapping[str, Any]) -> Head:
    changed = {name: arrays[name] for name in ("text", "has_text", "keys", "owners")}
    labels = tuple(map(str, fields["labels"]))
    return dataclasses.replace(head, labels=labels, alpha=float(fields["alpha"]), beta=float(fields["beta"]), **changed)


_REPLAYS: Mapping[str, Callable[[Head, Mapping[str, Any], Mapping[str, Any]], Head]] = {
    "teach": _replay_teach,
    "forget": _replay_forget,
    "relabel": _replay_relabel,
    "head": _replay_whole,
}


def _record(what: str, head: Head, arrays: Mapping[str, Any] | None = None, **fields: str) -> Record:
    return Record(what=what, fields={**fields, "alpha": head.alpha, "beta": head.beta}, arrays=arrays or {})


def _whole(head: Head) -> Record:
    """A head as one record, so that nothing before it is needed."""
    return Record(
        what="head",
        fields={"labels": list(head.labels), "alpha": head.alpha, "beta": head.beta},
        arrays={"text": head.text, "has_text": head.has_text, "keys": head.keys, "owners": head.owners},
    )


def _calibrated(head: Head, *, recalibrate: bool) -> tuple[Head, Calibration | None]:
    found = calibrate(head) if recalibrate else None
    if found is not None:
        return head.weighed(found.alpha, found.beta), found
    if head.alpha == 0 and not head.has_text.all():
        # Without a cache nothing of a class that lives there would be left but its stand-in.
        return head.weighed(START["alpha"], START["beta"]), None
    return head, None


def _check_label(label: str) -> None:
    if not isinstance(label, str) or not label.strip() or label != label.strip() or not label.isprintable():
        message = f"the label is {label!r}: expected a name of printable characters, without spaces around it"
        raise InputError(message)


def _warn_of_copies(head: Head, label: str, features: Float32) -> None:
    """Tell of photos that other classes have already, or copies too near to be others."""
    if len(head.keys) == 0:
        return
    affinity = features @ head.keys.T
    same = np.argwhere(affinity > SAME_PICTURE)
    pairs = [
        f"images[{row}] is photo {head.places[key]} of {head.labels[head.owners[key]]!r} "
        f"(cosine {affinity[row, key]:.6f})"
        for row, key in same.tolist()
        if head.labels[head.owners[key]] != label
    ]
    if pairs:
        more = f" and {len(pairs) - _MOST_PAIRS} more" if len(pairs) > _MOST_PAIRS else ""
        message = (
            f"photos of {label!r} are of other classes too: {'; '.join(pairs[:_MOST_PAIRS])}{more}. "
            "One of the two is mistaken, or they cannot be told apart"
        )
        warnings.warn(message, CalipsoWarning, stacklevel=6)
