"""`calipso classify`: pictures in, classes out."""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import click

from calipso_runtime.asking import DEFAULT_BATCH
from calipso_runtime.backends import ALL_BACKENDS, AUTO
from calipso_runtime.classifier import DEFAULT_TOP, Classifier
from calipso_runtime.clouds import CLOUD_EXTENSIONS
from calipso_runtime.commands.collect import PICTURE_EXTENSIONS, STDIN, collect
from calipso_runtime.commands.sign import signature_option
from calipso_runtime.commands.teach import taught_option
from calipso_runtime.commands.texts import read_texts
from calipso_runtime.commands.video import VideoOptions, answer_videos, video_options
from calipso_runtime.commands.warned import warned
from calipso_runtime.errors import ImageError
from calipso_runtime.loading import load
from calipso_runtime.manifest import POINTS
from calipso_runtime.prediction import Prediction, as_text
from calipso_runtime.prediction import as_json as answer_as_json
from calipso_runtime.tokenizer import WARN

# Fewer pictures than this are answered before a progress bar would tell anything.
_PROGRESS_FROM = 64
_SOME_UNREADABLE = 1

# `Classifier.classify_stream`, with how it is asked.
_Stream: TypeAlias = Callable[[Iterable[str | bytes]], Iterator[tuple[str | bytes, Prediction | ImageError]]]


@click.command("classify")
@click.argument("bundle", type=click.Path())
@click.argument("images", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--labels", metavar="FILE|a,b,c", help="Classes, one a line or inline, of a bundle that takes any.")
@click.option("--prompts", metavar="FILE|a,b,c", help="Instead of --labels: texts that are encoded as they are.")
@click.option("--top", type=click.IntRange(min=1), default=DEFAULT_TOP, show_default=True, help="Classes per picture.")
@click.option("--backend", type=click.Choice([AUTO, *ALL_BACKENDS]), default=AUTO, show_default=True, help="Engine.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help=f"Pictures computed together. [default: {DEFAULT_BATCH}; of a video each frame as it comes]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the engine. [default: one per core]")
@signature_option
@taught_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per picture and line.")
@video_options
@click.option("-v", "--verbose", is_flag=True, help="Tell on stderr which engine it is, and why.")
def classify_command(
    *,
    bundle: str,
    images: tuple[str, ...],
    labels: str | None,
    prompts: str | None,
    top: int,
    backend: str,
    batch: int | None,
    threads: int | None,
    require_signature: Path | None,
    taught: Path | None,
    as_json: bool,
    verbose: bool,
    **of_video: Any,
) -> None:
    """Classify IMAGES with BUNDLE.

    IMAGES are files, folders (searched recursively), quoted patterns ("photos/**/*.jpg"), or - for
    one picture on stdin. A picture that cannot be read is told on stderr; the others are answered,
    and the exit code is 1. A BUNDLE of point clouds takes .npy and .npz files likewise. One with a
    text tower takes any --labels, or --prompts.

    Videos are answered frame by frame, as JSON lines: files (.mp4, .mkv, .webm ...), a camera ("camera:0") or a
    stream ("rtsp://..."). Ctrl-C ends them.
    """
    video = VideoOptions.of(images, **of_video)
    texts: dict[str, Any] = {"labels": read_texts(labels), "prompts": read_texts(prompts)}
    with _quiet_load(
        bundle,
        backend=backend,
        threads=threads,
        require_signature=require_signature,
        taught=True if taught is None else taught,
    ) as classifier:
        if verbose:
            click.echo(classifier.backend_reason, err=True)
        if video is not None:
            with warned():
                unreadable = answer_videos(classifier, images, video, **texts, top=top, batch=batch or 1)
            click.get_current_context().exit(_SOME_UNREADABLE if unreadable else 0)
        takes_points = classifier.manifest.input_name == POINTS
        paths = collect(images, extensions=CLOUD_EXTENSIONS if takes_points else PICTURE_EXTENSIONS)
        unreadable = 0
        stream = functools.partial(
            classifier.classify_stream,
            **texts,
            top=top,
            batch=batch or DEFAULT_BATCH,
        )
        for path, answer in _progress(_answers(stream, paths), len(paths)):
            if isinstance(answer, ImageError):
                unreadable += 1
                click.echo(f"error: {_one_line(answer)}", err=True)
            else:
                name = click.format_filename(path)
                click.echo(
                    json.dumps({"image": path, **answer_as_json(answer, classifier.confidence)})
                    if as_json
                    else as_text(name, answer, classifier.confidence)
                )
    if unreadable:
        click.echo(f"error: {unreadable} of {len(paths)} pictures could not be read", err=True)
        click.get_current_context().exit(_SOME_UNREADABLE)


def _quiet_load(
    bundle: str, *, backend: str, threads: int | None, require_signature: Path | None, taught: Path | bool
) -> Classifier:
    with warned():
        return load(
            bundle,
            backend=backend,
            threads=threads,
            require_signature=require_signature,
            taught=taught,
            truncation=WARN,
        )


def _answers(stream: _Stream, paths: Iterable[str]) -> Iterator[tuple[str, Prediction | ImageError]]:
    """Answers with the path of each, stdin's bytes under the name "-"."""
    named = ((path, sys.stdin.buffer.read() if path == STDIN else path) for path in paths)
    names: list[str] = []

    def pictures() -> Iterator[str | bytes]:
        for name, picture in named:
            names.append(name)
            yield picture

    with warned():
        for _, answer in stream(pictures()):
            yield names.pop(0), answer


def _progress(
    answers: Iterator[tuple[str, Prediction | ImageError]], total: int
) -> Iterator[tuple[str, Prediction | ImageError]]:
    """The same answers, with a bar on stderr where a person is looking and it takes a while."""
    if total < _PROGRESS_FROM or not _is_watched():
        yield from answers
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(answers, description="classify", total=total, console=Console(stderr=True), transient=True)


def _is_watched() -> bool:
    return sys.stderr.isatty()


def _one_line(error: ImageError) -> str:
    return " ".join(str(error).split())
