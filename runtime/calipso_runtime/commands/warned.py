"""Warnings of ours as lines on stderr, instead of Python's two with a file's name."""

import contextlib
import warnings
from collections.abc import Iterator

import click

from calipso_runtime.errors import CalipsoWarning


@contextlib.contextmanager
def warned() -> Iterator[None]:
    """Tell them as they come. What libraries warn of is either an error of ours, or does not change the answer."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        click.echo(f"warning: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CalipsoWarning)
        warnings.showwarning = show
        yield
