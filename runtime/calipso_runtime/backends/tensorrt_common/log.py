"""A compiler's log, kept: its calls answer None or False, and only the log says why."""

import threading
from collections import deque
from typing import TextIO

_MOST_KEPT = 200
_SHOWN = 5
_ERRORS = ("ERROR", "INTERNAL_ERROR")
_WARNING = "WARNING"


class LogLines:
    """Keeps errors and warnings; the compiler calls it from several threads.

    Args:
        stream: gets every line as well, the verbose ones too.
        compiler: its name in messages.
    """

    def __init__(self, stream: TextIO | None = None, *, compiler: str = "TensorRT") -> None:
        self._stream = stream
        self._compiler = compiler
        self._lock = threading.Lock()
        self._errors: deque[str] = deque(maxlen=_MOST_KEPT)
        self._warnings: deque[str] = deque(maxlen=_MOST_KEPT)

    def keep(self, severity: str, message: str) -> None:
        """Keep a message.

        Args:
            severity: name of the compiler's severity: "ERROR", "WARNING", "VERBOSE", ...
            message: the text, one line or several.
        """
        with self._lock:
            if severity in _ERRORS:
                # Our messages go on behind it.
                self._errors.append(message.strip().rstrip("."))
            elif severity == _WARNING:
                self._warnings.append(message)
            if self._stream is not None:
                self._write(self._stream, f"[{severity}] {message}\n")

    def _write(self, stream: TextIO, line: str) -> None:
        """Write a line. A full disk does not end a build, and the bindings would print each error."""
        try:
            stream.write(line)
        except OSError as error:
            self._stream = None
            self._warnings.append(f"{self._compiler}'s log is not written any more: {error.strerror or error}")

    def take_errors(self) -> str:
        """The first errors since the last call, as the end of a sentence: the first one is mostly the cause."""
        with self._lock:
            errors = list(dict.fromkeys(self._errors))
            self._errors.clear()
        shown = "; ".join(errors[:_SHOWN])
        more = f" (and {len(errors) - _SHOWN} more)" if len(errors) > _SHOWN else ""
        return f"{shown}{more}" if errors else f"{self._compiler} did not say why"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every warning once."""
        with self._lock:
            return tuple(dict.fromkeys(self._warnings))
