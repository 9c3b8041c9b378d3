"""Processes that tests start and talk to: none of them outlives its test."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def child(command: Sequence[object], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Start a process; whatever happens in the block, the process is killed and waited for at its end.

    Args:
        command: the program and its arguments.
        options: of `subprocess.Popen`.
    """
    with subprocess.Popen([*map(str, command)], **options) as process:
        try:
            yield process
        finally:
            # Nothing happens to a process that has ended.
            process.kill()
