"""Folders of photos: `shots/<class>/*`, matched with the class names, and checked before long work."""

import contextlib
import dataclasses
import hashlib
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from calipso_export.progress import Progress, track
from calipso_runtime.commands.collect import PICTURE_EXTENSIONS, collect
from calipso_runtime.errors import ImageError, ShotsError

if TYPE_CHECKING:
    from calipso_export.front_ends.base import FrontEnd

_MOST_LINES_SHOWN = 50
_MOST_NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photo:
    """One photo of a class.

    Attributes:
        path: the file.
        label: index of its class.
        sha256: of the file's content.
    """

    path: Path
    label: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photos:
    """Photos by class, sorted by class and name, and the files that were left out."""

    photos: tuple[Photo, ...] = ()
    skipped: tuple[str, ...] = ()


def find_photos(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """List the photos of a folder whose sub-folders are named like the classes.

    A folder fits a class if both read the same without regard to case, with `_` and `/` as spaces.
    Hidden files are passed over.

    Args:
        folder: `folder/<class>/*`.
        classes: the class names.

    Returns:
        (file, class index), sorted by class and then by name.

    Raises:
        ShotsError: it is no folder, its sub-folders do not fit the classes, or one of them is empty.
    """
    if not folder.is_dir():
        message = f"{folder} is not a folder: expected {folder}/<class>/* with one sub-folder per class"
        raise ShotsError(message)
    folders = _match(folder, classes)
    found = [
        (path, index)
        for index, name in enumerate(classes)
        for path in sorted(folders[name].iterdir())
        if not path.is_dir() and not path.name.startswith(".")
    ]
    filled = {index for _, index in found}
    _check_names([path for path, _ in found])
    empty = [str(folders[name]) for index, name in enumerate(classes) if index not in filled]
    if empty:
        message = f"no photos in {', '.join(empty)}: every class needs at least one"
        raise ShotsError(message)
    return found


def check_photos(
    found: Sequence[tuple[Path, int]],
    front_end: "FrontEnd",
    classes: Sequence[str],
    *,
    skip_unreadable: bool,
    progress: Progress,
) -> Photos:
    """Decode every photo once, so that a broken one is known before the hours of encoding.

    Raises:
        ShotsError: some cannot be decoded (all of them are listed), or a class is left with none.
    """
    photos, unreadable = [], []
    for path, label in track(found, "reading photos", progress):
        problem = _why_unreadable(path, front_end)
        if problem is not None:
            unreadable.append(problem)
            continue
        photos.append(Photo(path=path, label=label, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    if unreadable and not skip_unreadable:
        advice = "Repair or remove them, or leave them out with --skip-unreadable"
        raise ShotsError(_unreadable_message(unreadable, len(found), advice))
    _refuse_two_classes(photos, classes)
    left = {photo.label for photo in photos}
    emptied = [name for index, name in enumerate(classes) if index not in left]
    if emptied:
        message = f"no readable photo is left of {', '.join(map(repr, emptied))}: every class needs at least one"
        raise ShotsError(message)
    return Photos(photos=tuple(photos), skipped=tuple(unreadable))


def check_readable(paths: Sequence[str], front_end: "FrontEnd", progress: Progress) -> None:
    """Decode every picture once.

    Raises:
        ShotsError: some cannot be decoded; all of them are listed.
    """
    problems = [_why_unreadable(Path(path), front_end) for path in track(paths, "reading pictures", progress)]
    unreadable = [problem for problem in problems if problem is not None]
    if unreadable:
        raise ShotsError(_unreadable_message(unreadable, len(paths), "Repair or remove them"))


def _refuse_two_classes(photos: Sequence[Photo], classes: Sequence[str]) -> None:
    first: dict[str, Photo] = {}
    for photo in photos:
        other = first.setdefault(photo.sha256, photo)
        if other.label != photo.label:
            message = (
                f"{other.path} and {photo.path} are the same photo in two classes, {classes[other.label]!r} and "
                f"{classes[photo.label]!r}: remove one"
            )
            raise ShotsError(message)


def labelled_pictures(
    folder: Path, classes: Sequence[str], extensions: Collection[str] = PICTURE_EXTENSIONS
) -> list[tuple[Path, int | None]]:
    """All files of some extensions below a folder; with their class where its sub-folders are named like classes.

    Raises:
        ShotsError: it is no folder.
        UsageError: there are no pictures in it.
    """
    if not folder.is_dir():
        message = f"{folder} is not a folder of pictures"
        raise ShotsError(message)
    index_of = {class_key(name): index for index, name in enumerate(classes)}
    paths = [path for path in map(Path, collect([str(folder)], extensions=extensions)) if not path.name.startswith(".")]
    _check_names(paths)
    return [(path, index_of.get(class_key(path.parent.name))) for path in paths]


def _check_names(paths: Sequence[Path]) -> None:
    """Refuse names that are no text: no report or manifest can hold them."""
    wrong = [path for path in paths if not _is_text(str(path))]
    if wrong:
        shown = ", ".join(ascii(str(path)) for path in wrong[:_MOST_NAMES_SHOWN])
        more = ", ..." if len(wrong) > _MOST_NAMES_SHOWN else ""
        message = (
            f"{len(wrong)} of {len(paths)} pictures have names that are no UTF-8: {shown}{more}. Rename them: an "
            "archive of another system may have been unpacked without its encoding"
        )
        raise ShotsError(message)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def class_key(name: str) -> str:
    """What is left of a class name when case, `_` and `/` do not count, nor how accents are written.

    A Mac names folders with letters and accents apart (NFD), where most texts have them as one (NFC).
    """
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").replace("/", " ").split()).casefold()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A photo, for open_clip's transform.

    Pillow warns that RGB cannot hold the transparency of a palette. The colours are the same without it.
    """
    with Image.open(path) as image:
        if isinstance(image.info.get("transparency"), bytes):
            del image.info["transparency"]
        yield image


def _why_unreadable(path: Path, front_end: "FrontEnd") -> str | None:
    try:
        front_end.given(path, name=str(path))
    except ImageError as error:
        return str(error)
    return None


def _unreadable_message(unreadable: Sequence[str], count: int, advice: str) -> str:
    more = len(unreadable) - _MOST_LINES_SHOWN
    lines = [*unreadable[:_MOST_LINES_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
    listed = "\n  ".join(lines)
    return f"{len(unreadable)} of {count} pictures cannot be read:\n  {listed}\n{advice}"


def _match(folder: Path, classes: Sequence[str]) -> Mapping[str, Path]:
    folders: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            folders.setdefault(class_key(path.name), []).append(path)
    keys = {class_key(name): name for name in classes}
    if len(keys) < len(classes):
        message = "some class names differ only in case, `_` or `/`: their folders of photos could not be told apart"
        raise ShotsError(message)
    missing = [name for key, name in keys.items() if key not in folders]
    unknown = [path.name for key, paths in folders.items() if key not in keys for path in paths]
    twice = [path.name for paths in folders.values() if len(paths) > 1 for path in paths]
    if missing or unknown or twice:
        parts = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("classes without a folder", missing),
                ("folders without a class", unknown),
                ("folders for the same class", twice),
            )
            if names
        ]
        message = f"the folders in {folder} do not fit the {len(classes)} classes: {'; '.join(parts)}"
        raise ShotsError(message)
    return {name: folders[key][0] for key, name in keys.items()}
