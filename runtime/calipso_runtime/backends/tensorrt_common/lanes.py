"""Shares a few lanes among any number of threads, and keeps several batches under way."""

import threading
from collections.abc import Callable, Sequence

from calipso_runtime.backends.tensorrt_common.bound import Array
from calipso_runtime.backends.tensorrt_common.lane import Lane
from calipso_runtime.cuda.device import Device
from calipso_runtime.errors import BackendError, CalipsoError, DeviceMemoryError, InputError


class Pending:
    """A batch under way. `result` may be called from any thread, and again."""

    def __init__(self, lanes: "Lanes", lane: Lane, outputs: Sequence[str]) -> None:
        self._lanes = lanes
        self._lane: Lane | None = lane
        self._outputs = tuple(outputs)
        self._answers: dict[str, Array] = {}
        self._error: CalipsoError | None = None
        self._lock = threading.Lock()

    def result(self) -> dict[str, Array]:
        """Wait for the answers.

        Raises:
            BackendError: the device failed.
        """
        self.settle()
        if self._error is not None:
            raise self._error
        return self._answers

    def settle(self) -> None:
        """Take the answers out of the lane, so that it can take another batch; an error is kept for `result`."""
        with self._lock:
            lane, self._lane = self._lane, None
            if lane is None:
                return
            try:
                self._answers = self._lanes.finish(lane, self._outputs)
            except CalipsoError as error:
                self._error = error
            except BaseException:
                # Ctrl-C, in whichever thread waited: whose batch it is has to hear of it too.
                self._error = BackendError("the wait for this batch was interrupted: classify it again")
                raise


class Lanes:
    """Lanes that are made when they are needed, and at most so many.

    Each is at any time idle, being started or finished by one thread, or under way.

    Args:
        make: a new lane, with the device's context current.
        device: they run on.
        most: of them.
        name: of the backend, for messages.
    """

    def __init__(self, make: Callable[[], Lane], device: Device, *, most: int, name: str) -> None:
        self._make, self._device, self._most, self._name = make, device, most, name
        self._idle: list[Lane] = []
        self._count = 0
        # In the order in which they were started. Whoever takes one out of it settles it.
        self._under_way: dict[Lane, Pending] = {}
        self._is_closed = False
        # Held for moments only: never while the device is waited for.
        self._changed = threading.Condition()

    def submit(self, image: object, outputs: Sequence[str]) -> Pending:
        """Start a batch. Where every lane is taken, the batch that was started first is settled for one.

        Raises:
            InputError: an array on the device is not what the engine takes.
            DeviceMemoryError: there is not enough memory for a single batch under way.
            BackendError: closed, or the device failed.
        """
        while True:
            lane = self._take()
            try:
                with self._device.current():
                    lane.start(image, outputs)
            except InputError:
                self._put_back(lane)
                raise
            except DeviceMemoryError:
                self._drop(lane)
                if not self._can_do_with_fewer():
                    raise
            except BaseException:
                # What it had queued is not known: it is not used again.
                self._drop(lane)
                raise
            else:
                return self._started(lane, outputs)

    def finish(self, lane: Lane, outputs: Sequence[str]) -> dict[str, Array]:
        """Wait for a lane, take its answers and put it back."""
        try:
            with self._device.current():
                answers = lane.finish(outputs)
        except BaseException:
            self._drop(lane)
            raise
        self._put_back(lane)
        return answers

    def close(self) -> None:
        """Settle what is under way, and free every lane. Twice is allowed."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        while True:
            with self._changed:
                pending = self._oldest()
                if pending is None and self._count == len(self._idle):
                    lanes, self._idle, self._count = self._idle, [], 0
                    self._changed.notify_all()
                    break
                if pending is None:
                    self._changed.wait()
            if pending is not None:
                pending.settle()
        with self._device.freeing():
            for lane in lanes:
                lane.free()

    def _take(self) -> Lane:
        while True:
            with self._changed:
                if self._is_closed:
                    message = f"the {self._name} backend is closed: load the bundle again"
                    raise BackendError(message)
                if self._idle:
                    return self._idle.pop()
                if is_new := self._count < self._most:
                    self._count += 1
                oldest = None if is_new else self._oldest()
                if oldest is None and not is_new:
                    # All of them are being started or finished in other threads.
                    self._changed.wait()
            if oldest is not None:
                oldest.settle()
            if is_new and (lane := self._new()) is not None:
                return lane

    def _oldest(self) -> Pending | None:
        """Out of those that are under way; called with the lock held."""
        lane = next(iter(self._under_way), None)
        return None if lane is None else self._under_way.pop(lane)

    def _new(self) -> Lane | None:
        """A new lane; None where there is no memory for another one, and one of the others has to do."""
        try:
            with self._device.current():
                return self._make()
        except BaseException as error:
            self._forget()
            if isinstance(error, DeviceMemoryError) and self._can_do_with_fewer():
                return None
            raise

    def _started(self, lane: Lane, outputs: Sequence[str]) -> Pending:
        pending = Pending(self, lane, outputs)
        with self._changed:
            self._under_way[lane] = pending
            self._changed.notify_all()
        return pending

    def _put_back(self, lane: Lane) -> None:
        with self._changed:
            # Not there where a thread that needs a lane took it out to settle it.
            self._under_way.pop(lane, None)
            self._idle.append(lane)
            self._changed.notify_all()

    def _drop(self, lane: Lane) -> None:
        try:
            with self._device.freeing():
                lane.free()
        finally:
            self._forget(lane)

    def _forget(self, lane: Lane | None = None) -> None:
        with self._changed:
            if lane is not None:
                self._under_way.pop(lane, None)
            self._count -= 1
            self._changed.notify_all()

    def _can_do_with_fewer(self) -> bool:
        """After one did not fit: whether there are others, which then have to do from now on."""
        with self._changed:
            if self._count > 0:
                self._most = self._count
            return self._count > 0
