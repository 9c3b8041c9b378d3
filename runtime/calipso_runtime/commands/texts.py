"""Texts that a command line names: a file with one a line, or the texts themselves with commas between them."""

from pathlib import Path

from calipso_runtime.errors import UsageError

_SUFFIXES = (".txt",)


def read_texts(source: str | None) -> list[str] | None:
    """The texts, without what surrounds them; empty lines are none. None where nothing was named.

    Raises:
        UsageError: the file is not there or cannot be read, or it names no text.
    """
    if source is None:
        return None
    path = Path(source)
    if path.suffix in _SUFFIXES or _is_file(path):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = f"{path} cannot be read: {error}. Expected a text file in UTF-8 with one label or text a line"
            raise UsageError(message) from error
    else:
        lines = source.split(",")
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        message = f"{source!r} names no label and no text: expected a file with one a line, or a,b,c"
        raise UsageError(message)
    return texts


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # Longer than a file's name can be.
        return False
