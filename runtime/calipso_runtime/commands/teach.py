"""`calipso teach`, `forget` and `relabel`: change the classes of a bundle whose head is an input of its graph."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from calipso_runtime.backends import ALL_BACKENDS, AUTO
from calipso_runtime.classifier import Classifier
from calipso_runtime.commands.collect import collect
from calipso_runtime.commands.warned import warned
from calipso_runtime.head.calibrate import Calibration
from calipso_runtime.loading import load

_Command = TypeVar("_Command", bound=Callable[..., Any])


def taught_option(command: _Command) -> _Command:
    """Where what a bundle was taught is kept."""
    return click.option(
        "--taught",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where what it was taught is kept (default: in the bundle).",
    )(command)


def _shared(command: _Command) -> _Command:
    backend = click.option("--backend", type=click.Choice([AUTO, *ALL_BACKENDS]), default=AUTO, show_default=True)
    calibrate = click.option(
        "--calibrate/--no-calibrate", default=True, show_default=True, help="Choose alpha and beta anew."
    )
    return backend(calibrate(taught_option(command)))


@click.command("teach")
@click.argument("bundle", type=click.Path())
@click.argument("label")
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--add", is_flag=True, help="Add the photos to a class that is there already.")
@_shared
def teach_command(
    *, bundle: str, label: str, images: tuple[str, ...], add: bool, backend: str, calibrate: bool, taught: Path | None
) -> None:
    """Teach BUNDLE the class LABEL by a few photos of it: files, folders or quoted patterns.

    The bundle has to be exported with --head-mode inputs. Its own files stay as they are.
    """
    paths = collect(images)
    with _changing(bundle, backend, taught) as classifier:
        found = classifier.teach(label, list(paths), add=add, calibrate=calibrate)
    click.echo(f"taught {label!r} by {len(paths)} photos, {len(classifier.labels)} classes now")
    _tell(found)


@click.command("forget")
@click.argument("bundle", type=click.Path())
@click.argument("label")
@_shared
def forget_command(*, bundle: str, label: str, backend: str, calibrate: bool, taught: Path | None) -> None:
    """Remove the class LABEL from BUNDLE, taught or exported."""
    with _changing(bundle, backend, taught) as classifier:
        found = classifier.forget(label, calibrate=calibrate)
    click.echo(f"forgot {label!r}, {len(classifier.labels)} classes now")
    _tell(found)


@click.command("relabel")
@click.argument("bundle", type=click.Path())
@click.argument("old")
@click.argument("new")
@click.option("--backend", type=click.Choice([AUTO, *ALL_BACKENDS]), default=AUTO, show_default=True)
@taught_option
def relabel_command(*, bundle: str, old: str, new: str, backend: str, taught: Path | None) -> None:
    """Give the class OLD of BUNDLE the name NEW."""
    with _changing(bundle, backend, taught) as classifier:
        classifier.relabel(old, new)
    click.echo(f"{old!r} is {new!r} now")


@contextlib.contextmanager
def _changing(bundle: str, backend: str, taught: Path | None) -> Iterator[Classifier]:
    """Load, let it be changed, save; warnings of ours as one line on stderr each."""
    with warned(), load(bundle, backend=backend, taught=True if taught is None else taught) as classifier:
        yield classifier
        classifier.save()


def _tell(found: Calibration | None) -> None:
    if found is None:
        click.echo("alpha and beta stay as they were")
        return
    weights = f"alpha {found.alpha:g}, beta {found.beta:g}" if found.alpha else "no cache: it is no better with one"
    if not found.photos:
        click.echo(f"{weights}: no class has two photos, so that none could be held out")
        return
    click.echo(
        f"{weights}; leave-one-out on {found.photos} photos: {found.accuracy_without:.2%} without the cache, "
        f"{found.accuracy_with:.2%} with it"
    )
