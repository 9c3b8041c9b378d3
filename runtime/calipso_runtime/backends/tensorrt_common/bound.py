"""Runs an engine in one of its profiles: memory for the largest batch, contexts that share it, captured graphs.

Memory is taken once: addresses never change, so that what was captured stays right.

A captured graph is good only as long as the context that it was captured from is left as it was: another shape or
address in there changes what the graph finds (TensorRT's developer guide on CUDA graphs, NVIDIA/TensorRT#3798). So
each graph has a context of its own. What contexts compute in, they share: only one of them runs at a time.
"""

import contextlib
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import TensorInfo
from calipso_runtime.backends.tensorrt_common.engine import Engine
from calipso_runtime.cuda.device import Device, DeviceBuffer, Graph, PinnedBuffer, Stream
from calipso_runtime.errors import BackendError, DeviceLostError

# Captured batches per profile; each takes a context and some megabytes on the device.
MOST_GRAPHS = 16
# A graph gives way to another only after so many batches without it: where more sizes than MOST_GRAPHS come in turn,
# each would be captured again whenever it comes.
MOST_UNUSED = 256
# Batches that are remembered as run before, so that the next one of that size is captured.
_MOST_SEEN = 64
# Of addresses, asked by IExecutionContext::setTensorAddress (NvInferRuntime.h); cuMemAlloc gives no less.
_ALIGNMENT_BYTES = 256
# What contexts compute in, beside the names of inputs and outputs.
_SCRATCH = "memory to compute in"

Array = npt.NDArray[np.floating]


class Execution:
    """An execution context of one profile, which computes in memory that it is lent."""

    def __init__(self, engine: Engine, profile: int, stream: Stream, lent: Mapping[str, DeviceBuffer]) -> None:
        self._engine, self._stream = engine, stream
        self._prepared: tuple[int, int] | None = None
        self._context = engine.context()
        try:
            self._set_up(profile, lent)
        except BaseException:
            self.free()
            raise

    def _set_up(self, profile: int, lent: Mapping[str, DeviceBuffer]) -> None:
        if not self._context.set_optimization_profile_async(profile, self._stream.handle):
            self._engine.fail(f"cannot use profile {profile}")
        scratch = lent[_SCRATCH]
        self._context.set_device_memory(scratch.handle, scratch.size_bytes)
        for info in self._engine.outputs:
            self._set_address(info.name, lent[info.name].handle)

    def prepare(self, batch: int, address: int) -> None:
        """Say how many pictures come, and where they lie."""
        if self._prepared == (batch, address):
            return
        self._prepared = None
        if not self._context.set_input_shape(self._engine.input, (batch, *row_shape(self._engine.inputs[0]))):
            self._engine.fail(f"refuses a batch of {batch}")
        self._set_address(self._engine.input, address)
        self._prepared = (batch, address)

    def execute(self) -> None:
        """Queue it."""
        if not self._context.execute_async_v3(self._stream.handle):
            self._engine.fail("cannot run the engine")

    def can_be_captured(self) -> bool:
        """Return whether the batch that was prepared can be captured."""
        return self._engine.can_capture(self._context, self._stream.handle)

    def free(self) -> None:
        """Let go of the context. Nothing of it may be running any more."""
        # Not None: a context is never missing while it may be used, and its type says so.
        with contextlib.suppress(AttributeError):
            del self._context

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            self._engine.fail(f"refuses the memory of {name}")


@dataclasses.dataclass
class _Kept:
    """A graph, the execution that it was captured from, and the batch that it last ran for."""

    execution: Execution
    graph: Graph
    last: int

    def free(self) -> None:
        self.graph.free()
        self.execution.free()


class Bound:
    """A profile, bound to memory for its largest batch.

    Attributes:
        profile: its place among those of the engine.
        least: the smallest batch that it takes.
    """

    def __init__(self, engine: Engine, profile: int, device: Device, stream: Stream, *, uses_graphs: bool) -> None:
        self.least = engine.ranges[profile].least
        self.profile = profile
        self._engine, self._stream, self._driver = engine, stream, device.driver
        self._uses_graphs = uses_graphs
        self._infos = {info.name: info for info in (*engine.inputs, *engine.outputs)}
        self._on_device: dict[str, DeviceBuffer] = {}
        self._on_host: dict[str, PinnedBuffer] = {}
        self._kept: OrderedDict[tuple[int, int], _Kept] = OrderedDict()
        self._seen: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._batches = 0
        # For batches that are not captured: its shape changes from one to the next.
        self._loose: Execution | None = None
        try:
            self._take_memory(engine.ranges[profile].most)
            self._loose = self._new_execution()
        except BaseException:
            self.free()
            raise

    def _take_memory(self, most: int) -> None:
        for name, info in self._infos.items():
            size_bytes = most * _row_bytes(info)
            self._on_device[name] = DeviceBuffer(self._driver, size_bytes)
            self._on_host[name] = PinnedBuffer(self._driver, size_bytes)
        # An engine may need none, but none cannot be allocated.
        self._on_device[_SCRATCH] = DeviceBuffer(self._driver, max(1, self._engine.scratch_bytes(self.profile)))

    def _new_execution(self) -> Execution:
        return Execution(self._engine, self.profile, self._stream, self._on_device)

    def upload(self, image: Array) -> None:
        """Queue the copy of a batch to the device; rows up to the smallest batch are filled with zeros."""
        rows = max(len(image), self.least)
        staged = self._view(self._engine.input, rows)
        np.copyto(staged[: len(image)], image, casting="no")
        staged[len(image) :] = 0
        name = self._engine.input
        self._stream.upload(self._on_device[name].handle, self._on_host[name].handle, staged.nbytes)

    def copy_in(self, address: int, rows: int) -> None:
        """Queue the copy of rows that lie on the device already."""
        size_bytes = rows * _row_bytes(self._infos[self._engine.input])
        self._stream.copy(self._on_device[self._engine.input].handle, address, size_bytes)

    def takes(self, address: int, rows: int) -> bool:
        """Whether so many rows can be read where they lie: none beyond their end, from where TensorRT reads."""
        return rows >= self.least and address % _ALIGNMENT_BYTES == 0

    def run(self, batch: int, address: int | None) -> None:
        """Queue a batch.

        Args:
            batch: that the profile takes.
            address: of it on the device; None for what was uploaded or copied in.
        """
        key = (batch, self._on_device[self._engine.input].handle if address is None else address)
        self._batches += 1
        if (kept := self._kept.get(key)) is not None:
            kept.last = self._batches
            self._kept.move_to_end(key)
            self._stream.launch(kept.graph)
            return
        if self._loose is None:
            message = "the memory of this profile was freed: load the bundle again"
            raise BackendError(message)
        self._loose.prepare(*key)
        self._loose.execute()
        if self._uses_graphs and key in self._seen and self._has_room():
            self._capture(key)
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    def download(self, rows: int, outputs: Sequence[str]) -> None:
        """Queue the way back of answers."""
        for name in outputs:
            size_bytes = rows * _row_bytes(self._infos[name])
            self._stream.download(self._on_host[name].handle, self._on_device[name].handle, size_bytes)

    def answer(self, name: str, rows: int) -> Array:
        """A copy of answers that have arrived: the next batch overwrites this memory."""
        return self._view(name, rows).copy()

    def free(self) -> None:
        """Graphs go before their contexts, contexts before the memory whose addresses they hold."""
        for kept in self._kept.values():
            kept.free()
        self._kept.clear()
        if self._loose is not None:
            self._loose.free()
            self._loose = None
        for buffer in (*self._on_device.values(), *self._on_host.values()):
            buffer.free()
        self._on_device.clear()
        self._on_host.clear()

    def _view(self, name: str, rows: int) -> Array:
        info = self._infos[name]
        staged = self._on_host[name].bytes[: rows * _row_bytes(info)]
        return staged.view(np.dtype(info.dtype)).reshape(rows, *row_shape(info))

    def _has_room(self) -> bool:
        if len(self._kept) < MOST_GRAPHS:
            return True
        return self._batches - next(iter(self._kept.values())).last > MOST_UNUSED

    def _capture(self, key: tuple[int, int]) -> None:
        """Keep a batch like the last one as a graph. Where that fails, all are run as before, from now on always."""
        execution: Execution | None = None
        captured: list[Graph] = []
        try:
            execution = self._new_execution()
            execution.prepare(*key)
            # The batch once more: TensorRT finishes what a new shape asks for in the first run, which is not captured.
            execution.execute()
            self._stream.wait()
            if not execution.can_be_captured():
                self._engine.fail("cannot capture a batch as a graph")
            with self._stream.capture(captured):
                execution.execute()
        except BackendError as error:
            if execution is not None:
                execution.free()
            if isinstance(error, DeviceLostError):
                raise
            self._uses_graphs = False
            return
        self._kept[key] = _Kept(execution, captured[0], self._batches)
        if len(self._kept) > MOST_GRAPHS:
            self._kept.popitem(last=False)[1].free()


def row_shape(info: TensorInfo) -> tuple[int, ...]:
    """Of one picture, or of what is answered of it."""
    return tuple(size or 1 for size in info.shape[1:])


def _row_bytes(info: TensorInfo) -> int:
    return math.prod(row_shape(info)) * np.dtype(info.dtype).itemsize
