"""Progress of a build, and its end on request: a compiler asks after every step whether to go on."""

import threading
from collections.abc import Callable

# Called with the outermost phase that goes on, its steps done and all of them.
Report = Callable[[str, int, int], None]


class Phases:
    """Reports phases that stand on their own; those inside of others would jump back and forth.

    The compiler calls it from several threads, where its bindings print an exception and go on: what `report` raises
    is kept in `error` instead, and cancels the build.

    Attributes:
        error: what a report raised, to be raised again when the build is over.
    """

    def __init__(self, report: Report) -> None:
        self.error: BaseException | None = None
        self._report = report
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End the build at its next step."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether the build was asked to end."""
        return self._cancelled.is_set()

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        if not parent:
            with self._lock:
                self._steps[phase] = steps
            self._tell(phase, 0, steps)

    def complete(self, phase: str, step: int) -> bool:
        """A step is over; False ends the build."""
        steps = self._steps.get(phase)
        if steps is not None:
            self._tell(phase, min(step + 1, steps), steps)
        return not self.is_cancelled

    def finish(self, phase: str) -> None:
        """A phase is over, or was ended."""
        with self._lock:
            steps = self._steps.pop(phase, None)
        if steps is not None:
            self._tell(phase, steps, steps)

    def _tell(self, phase: str, done: int, steps: int) -> None:
        try:
            self._report(phase, done, steps)
        except BaseException as error:  # noqa: BLE001 - it must not cross the compiler's own frames
            # Without its traceback, whose frames lead back to the build's: the compiler's objects would live as long.
            self.error = error.with_traceback(None)
            self.cancel()
