"""What a step of an export is, and how steps hand each other what they made."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar, cast

from calipso_export.progress import Progress

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkFolder:
    """Where the bundle's files are written until it is complete."""

    path: Path


class Made:
    """What the steps made so far, one of each type."""

    def __init__(self, *things: object) -> None:
        self._things: dict[type, object] = {type(thing): thing for thing in things}

    def __getitem__(self, kind: type[T]) -> T:
        return cast("T", self._things[kind])

    def __contains__(self, kind: type) -> bool:
        return kind in self._things

    def add(self, thing: object) -> None:
        """Add a thing under its type."""
        self._things[type(thing)] = thing


class Step(Protocol):
    """One verb of an export.

    Attributes:
        requires: types that must have been made before.
        ensures: types that `run` adds.
    """

    requires: ClassVar[tuple[type, ...]]
    ensures: ClassVar[tuple[type, ...]]

    def run(self, made: Made, progress: Progress) -> None:
        """Make what `ensures` names out of what `requires` names."""
