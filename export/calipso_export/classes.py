"""Class names: from a text file, TOML, JSON or inline, checked once."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from calipso_export.files import is_file, read_structured, read_text
from calipso_runtime.errors import ClassListError

_MIN_CLASSES = 2
_FILE_SUFFIXES = (".txt", ".toml", ".json")


def read_classes(source: str) -> tuple[str, ...]:
    """Read class names.

    Args:
        source: a `.txt` (one name a line), a `.toml` with `classes = [...]`, a `.json` list, or the
            names themselves with commas between them.

    Raises:
        ClassListError: no or one name, an empty one, or one that stands twice.
        UsageError: the file cannot be read.
    """
    path = Path(source)
    if not is_file(source) and path.suffix not in _FILE_SUFFIXES:
        return check_classes(source.split(","), source="the inline list")
    if path.suffix in (".toml", ".json"):
        document = read_structured(path)
        names = document.get("classes") if isinstance(document, dict) else document
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            message = f"{path} holds no list of class names: expected `classes = [...]` in TOML, a list in JSON"
            raise ClassListError(message)
        return check_classes(names, source=str(path))
    return check_classes(read_text(path).removesuffix("\n").split("\n"), source=str(path))


def check_classes(names: Sequence[str], *, source: str) -> tuple[str, ...]:
    """Strip the names, and refuse what no classifier can be made of.

    Raises:
        ClassListError: see `read_classes`.
    """
    wrong = [name for name in names if not isinstance(name, str) or not _is_unicode(name)]
    if wrong:
        message = f"{source} has class names that are no text: {', '.join(map(repr, wrong))}. Put them in quotes"
        raise ClassListError(message)
    stripped = tuple(name.strip() for name in names)
    if not any(stripped):
        message = f"{source} holds no class names: give at least {_MIN_CLASSES}"
        raise ClassListError(message)
    empty = [index for index, name in enumerate(stripped, start=1) if not name]
    if empty:
        message = f"{source} has an empty class name at position {', '.join(map(str, empty))}: remove it"
        raise ClassListError(message)
    twice = [f"{name!r} ({count} times)" for name, count in Counter(stripped).items() if count > 1]
    if twice:
        message = f"{source} has duplicated class names: {', '.join(twice)}. Every class needs a name of its own"
        raise ClassListError(message)
    if len(stripped) < _MIN_CLASSES:
        message = f"{source} holds one class, {stripped[0]!r}: a classifier needs at least {_MIN_CLASSES}"
        raise ClassListError(message)
    return stripped


def _is_unicode(name: str) -> bool:
    """False for the half of a surrogate pair, which JSON and a command line can hold and no file can."""
    return name.encode(errors="ignore").decode() == name
