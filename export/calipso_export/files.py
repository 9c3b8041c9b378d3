"""Reading the small text files that users write: TOML, JSON and lists, with errors that name the file."""

import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from calipso_runtime.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def is_file(source: str) -> bool:
    """Whether a text names a file: it may as well be a list of names, longer than any path can be."""
    try:
        return Path(source).is_file()
    except OSError:
        return False


# What libraries raise on damaged files: parsing bytes can raise nearly anything.
PARSING_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        UsageError: it does not exist, is not a file, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        message = f"{path} does not exist: expected a text file"
        raise UsageError(message) from error
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read as UTF-8 text: {error}"
        raise UsageError(message) from error


def read_structured(path: Path) -> Any:
    """Parse a `.toml` or `.json` file.

    Raises:
        UsageError: it cannot be read, or is not valid.
    """
    text = read_text(path)
    try:
        document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        if path.suffix != ".toml":
            # JSON can escape the half of a surrogate pair, which no file can hold.
            json.dumps(document, ensure_ascii=False).encode()
    # Both parsers' errors are ValueErrors, and so is a number of more digits than Python converts.
    except (ValueError, RecursionError) as error:
        message = f"{path} is not valid {path.suffix[1:].upper()}: {error}"
        raise UsageError(message) from error
    return document
