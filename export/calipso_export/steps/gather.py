"""Gather: every prompt and picture that the export will need, read once, before any long work."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from calipso_export.calibration_pictures import CalibrationPictures, calibration_pictures
from calipso_export.config import ExportConfig
from calipso_export.front_ends import Content, FrontEnd
from calipso_export.learned_text import digest_of
from calipso_export.models import LoadedModel
from calipso_export.photos import Photos, check_photos, check_readable, find_photos, labelled_pictures
from calipso_export.precision import AUTO
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.templates import Prompts, read_prompts
from calipso_runtime.errors import CalipsoWarning, UsageError

# Of the shots, when there is nothing else to verify on: an even sample over the classes.
_MOST_SHOTS = 64
_MOST_FOLDERS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to verify on.

    Attributes:
        name: for the report.
        content: a file, or an image or a cloud made here.
        label: class index where it is known.
    """

    name: str
    content: Content
    label: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures to verify on, and where they come from, in words."""

    pictures: tuple[Picture, ...]
    source: str


class Gather:
    """Read the prompts, the example photos and the pictures to verify on, and refuse what cannot be used."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel)
    ensures: ClassVar[tuple[type, ...]] = (Prompts, Photos, Pictures, CalibrationPictures)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, front_end = made[ExportConfig], made[LoadedModel].front_end
        made.add(_prompts(config))
        photos = Photos()
        if config.shots is not None:
            photos = check_photos(
                find_photos(config.shots, config.classes),
                front_end,
                config.classes,
                skip_unreadable=config.skip_unreadable,
                progress=progress,
            )
        if config.verify_data is None:
            pictures = _some_shots(photos)
        else:
            pictures = read_pictures(config.verify_data, config.classes, front_end)
            check_readable([str(picture.content) for picture in pictures.pictures], front_end, progress)
        if config.precision == AUTO and all(picture.label is None for picture in pictures.pictures):
            message = (
                "precision auto weighs speed against accuracy, and no picture to verify on has a known class: give "
                "--verify-data DIR with folders named like the classes"
            )
            raise UsageError(message)
        made.add(photos)
        made.add(pictures)
        made.add(calibration_pictures(config, photos, front_end, progress))


def _prompts(config: ExportConfig) -> Prompts:
    """What the text features come from."""
    if config.text_weights is None:
        return read_prompts(config.templates, config.classes)
    return Prompts(source=config.text_weights.name, text_weights=digest_of(config.text_weights))


def read_pictures(folder: Path, classes: Sequence[str], front_end: FrontEnd) -> Pictures:
    """The pictures below a folder; labelled where their folders are named like classes."""
    found = [
        Picture(name=str(path.relative_to(folder)), content=path, label=label)
        for path, label in labelled_pictures(folder, classes, front_end.extensions)
    ]
    _warn_of_unlabelled(found)
    return Pictures(pictures=tuple(found), source=f"the folder {folder.name}")


def _warn_of_unlabelled(found: Sequence[Picture]) -> None:
    """Where some folders are named like classes, tell which are not: their pictures count for no accuracy."""
    left_out = [picture for picture in found if picture.label is None]
    if not left_out or len(left_out) == len(found):
        return
    folders = sorted({str(Path(picture.name).parent) for picture in left_out})
    shown = ", ".join(map(repr, folders[:_MOST_FOLDERS])) + (", ..." if len(folders) > _MOST_FOLDERS else "")
    message = (
        f"{len(left_out)} of {len(found)} pictures count for no accuracy: their folders are named like no class "
        f"({shown})"
    )
    warnings.warn(message, CalipsoWarning, stacklevel=3)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` indices out of `count`, evenly spaced."""
    wanted = min(count, most)
    return [index * count // wanted for index in range(wanted)]


def _some_shots(photos: Photos) -> Pictures:
    shots = [photos.photos[index] for index in evenly(len(photos.photos), _MOST_SHOTS)]
    # Unlabelled: accuracy on photos that are in the cache says nothing.
    chosen = [Picture(name=f"{photo.path.parent.name}/{photo.path.name}", content=photo.path) for photo in shots]
    return Pictures(pictures=tuple(chosen), source="the shots" if chosen else "none: edge cases only")
