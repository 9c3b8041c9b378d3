"""Runs batches on an engine, one at a time: a stream, and what is bound to each profile when it is first used."""

import contextlib
from collections.abc import Sequence

import numpy as np

from calipso_runtime.backends import TensorInfo
from calipso_runtime.backends.tensorrt_common.bound import Array, Bound, row_shape
from calipso_runtime.backends.tensorrt_common.engine import Engine
from calipso_runtime.cuda import arrays
from calipso_runtime.cuda.device import Device, Event, Stream
from calipso_runtime.errors import BackendError, InputError


class Lane:
    """Takes a batch, and has the answers of that batch until it takes the next.

    Args:
        engine: to run.
        device: whose context is current, here and in every call.
        uses_graphs: whether batches that come again are captured.

    Raises:
        DeviceMemoryError: the stream does not fit. Contexts are made when a profile is first used.
    """

    def __init__(self, engine: Engine, device: Device, *, uses_graphs: bool) -> None:
        self._engine, self._device, self._uses_graphs = engine, device, uses_graphs
        self._stream = Stream(device.driver)
        try:
            self._done = Event(device.driver)
        except BaseException:
            self._stream.free()
            raise
        self._bound: dict[int, Bound] = {}
        self._held: object = None
        self._rows = 0
        self._answering: Bound | None = None

    def start(self, image: object, outputs: Sequence[str]) -> None:
        """Queue a batch and the way back of its answers, and return.

        Args:
            image: [B,3,H,W], contiguous, of the engine's type: in numpy, or on the device.
            outputs: names of what is wanted.

        Raises:
            InputError: an array on the device is not what the engine takes; the lane is as it was.
            DeviceMemoryError: there is no memory for the profile.
            BackendError: no profile takes so many pictures, or the engine refuses.
        """
        if isinstance(image, np.ndarray):
            bound = self._bound_for(len(image))
            bound.upload(image)
            address: int | None = None
            self._rows = len(image)
        else:
            lent = arrays.read(image, self._stream, self._device)
            _check(lent, self._engine.inputs[0])
            self._rows = lent.shape[0]
            self._held, address = lent, lent.address
            bound = self._bound_for(self._rows)
            if not bound.takes(address, self._rows):
                bound.copy_in(lent.address, self._rows)
                address = None
        bound.run(max(self._rows, bound.least), address)
        bound.download(self._rows, outputs)
        self._stream.record(self._done)
        self._answering = bound

    def finish(self, outputs: Sequence[str]) -> dict[str, Array]:
        """Wait for the batch, and copy its answers."""
        self._done.wait()
        self._held = None
        if self._answering is None:
            message = "nothing was started in this lane"
            raise BackendError(message)
        self._engine.ran(self._answering.profile, max(self._rows, self._answering.least))
        return {name: self._answering.answer(name, self._rows) for name in outputs}

    def _bound_for(self, batch: int) -> Bound:
        ranges = self._engine.ranges
        profile = self._engine.profile_for(batch)
        if profile is None:
            # Below every profile: the smallest one takes it, filled up.
            larger = [place for place, each in enumerate(ranges) if each.most >= batch]
            if not larger:
                takes = ", ".join(map(str, ranges))
                message = f"a batch of {batch} is outside every profile of the engine ({takes}): split it, or build"
                message += f" with --batch MIN,OPT,{batch}"
                raise BackendError(message)
            profile = min(larger, key=lambda place: ranges[place].least)
        if profile not in self._bound:
            self._bound[profile] = Bound(
                self._engine, profile, self._device, self._stream, uses_graphs=self._uses_graphs
            )
        return self._bound[profile]

    def free(self) -> None:
        """Give everything back. What is still running is waited for; a lost device answers nothing."""
        with contextlib.suppress(BackendError):
            self._stream.wait()
        self._answering = self._held = None
        for bound in self._bound.values():
            bound.free()
        self._bound.clear()
        self._done.free()
        self._stream.free()


def _check(lent: arrays.DeviceArray, info: TensorInfo) -> None:
    if (
        not lent.shape
        or lent.shape[0] < 1
        or len(lent.shape) != len(info.shape)
        or lent.shape[1:] != row_shape(info)
        or lent.dtype != info.dtype
    ):
        message = (
            f"the array on the device is {lent.dtype} {list(lent.shape)}: expected {info.dtype} "
            f"{['N', *row_shape(info)]}, normalised already"
        )
        raise InputError(message)
