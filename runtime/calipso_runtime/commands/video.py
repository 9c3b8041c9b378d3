"""`calipso classify` on videos: its options, and a JSON line per frame as it is answered."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from calipso_runtime.classifier import Classifier
from calipso_runtime.errors import ImageError, UsageError
from calipso_runtime.prediction import as_json
from calipso_runtime.video import classify_video, is_video

_Function = TypeVar("_Function", bound=Callable[..., Any])


def video_options(function: _Function) -> _Function:
    """Add the options of `VideoOptions`."""
    for option in (
        click.option("--smooth", "smooth_s", type=float, metavar="SECONDS", help="Of videos: smooth over so long."),
        click.option("--fps", type=float, help="Of videos: take at most so many frames a second."),
        click.option("--every", type=click.IntRange(min=1), metavar="N", help="Of videos: take one frame in N."),
    ):
        function = option(function)
    return function


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How videos are answered, see `classify_video`."""

    every: int | None
    fps: float | None
    smooth_s: float | None

    @classmethod
    def of(cls, arguments: Sequence[str], **options: Any) -> "VideoOptions | None":
        """What was asked for, or None where the arguments are pictures.

        Raises:
            UsageError: they are both, or options of videos are there without one.
        """
        videos = [argument for argument in arguments if is_video(argument)]
        if 0 < len(videos) < len(arguments):
            message = f"{videos[0]} is a video, and others are not: give pictures and videos in a call each"
            raise UsageError(message)
        if not videos and (given := [name for name, value in options.items() if value is not None]):
            message = f"--{given[0].removesuffix('_s')} is for videos, and {arguments[0]} is none"
            raise UsageError(message)
        return cls(**options) if videos else None


def answer_videos(
    classifier: Classifier,
    sources: Sequence[str],
    options: VideoOptions,
    *,
    labels: Sequence[str] | None,
    prompts: Sequence[str] | None,
    top: int,
    batch: int,
) -> int:
    """Print a line per frame; how many of the videos could not be read, or not to their end."""
    unreadable = 0
    for source in sources:
        answers = classify_video(
            classifier,
            source,
            every=options.every or 1,
            fps=options.fps,
            smooth_s=options.smooth_s,
            labels=labels,
            prompts=prompts,
            top=top,
            batch=batch,
        )
        try:
            for frame, prediction in answers:
                place = {"video": source, "frame": frame.number, "time_s": round(frame.time_s, 6)}
                click.echo(json.dumps({**place, **as_json(prediction, classifier.confidence)}))
        except ImageError as error:
            unreadable += 1
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
    return unreadable
