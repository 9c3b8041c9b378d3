"""A deserialised engine: its tensors, its profiles, and contexts to run it in."""

import mmap
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from calipso_runtime.backends import TensorInfo, free_input
from calipso_runtime.backends.tensorrt_common.library import Library
from calipso_runtime.backends.tensorrt_common.network import dtype_name
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.errors import BackendError, BackendUnavailableError, DeviceMemoryError

if TYPE_CHECKING:
    import tensorrt

# As TensorRT and CUDA write in the log that there is too little of it.
OUT_OF_MEMORY = re.compile(r"memory|cudaMalloc|OOM", re.IGNORECASE)


class Engine:
    """An engine in the memory of the device whose context is current. Each library has a subclass.

    Args:
        library: that runs it.
        path: of a plan whose hash was checked.
        options: that it was built with.

    Attributes:
        inputs: of the graph; the batch is dynamic.
        input: name of the one that takes what is classified.
        outputs: of the graph.
        ranges: batches that each profile takes.

    Raises:
        BackendUnavailableError: the library does not take this plan here.
        BackendError: the engine cannot be completed.
    """

    def __init__(self, library: Library, path: Path, options: BuildOptions) -> None:
        self._library, self._log = library, library.new_log()
        # An engine does not keep a runtime that another one loaded, nor that one: their order of going is ours.
        runtimes = self._start_runtimes(options)
        engine = self._deserialised(runtimes[-1], path, options)
        self._complete(engine, path, options)
        if options.weight_streaming:
            # Has to be set before the first context; it decides what stays on the host by the memory that is free.
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        trt = library.trt
        tensors = [self._tensor(engine, index) for index in range(engine.num_io_tensors)]
        self.inputs = tuple(info for mode, info in tensors if mode == trt.TensorIOMode.INPUT)
        self.outputs = tuple(info for mode, info in tensors if mode == trt.TensorIOMode.OUTPUT)
        self.input = free_input((info.name for info in self.inputs), ())
        self.ranges = tuple(self._range(engine, each) for each in range(engine.num_optimization_profiles))
        self._streams_weights = options.weight_streaming
        self._engine: tensorrt.ICudaEngine | None = engine
        self._runtimes = runtimes
        # An engine is no thread's own, unlike its contexts: who asks it for something takes turns.
        self._lock = threading.Lock()

    @property
    def title(self) -> str:
        """Return name and version of the library."""
        return self._library.title

    def _start_runtimes(self, options: BuildOptions) -> "list[tensorrt.Runtime]":
        """Return the runtime that takes the plan, last, behind those that it needs."""
        del options
        return [self._new_runtime()]

    def _new_runtime(self) -> "tensorrt.Runtime":
        return self._library.new_runtime(self._log)

    def _complete(self, engine: "tensorrt.ICudaEngine", path: Path, options: BuildOptions) -> None:
        """Do what an engine needs before its first context."""

    def _new_context(self, engine: "tensorrt.ICudaEngine") -> "tensorrt.IExecutionContext | None":
        """Make a context that computes in memory which it is lent."""
        raise NotImplementedError

    def _deserialised(self, runtime: "tensorrt.Runtime", path: Path, options: BuildOptions) -> "tensorrt.ICudaEngine":
        if options.dla_core is not None:
            runtime.DLA_core = options.dla_core
        # Mapped: on a Jetson host and device share the memory that a copy would take.
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            message = (
                f"{self.title} does not take {path}: {self._log.take_errors()}. "
                f"Build it again on this machine: {self._library.build_command}"
            )
            raise BackendUnavailableError(message)
        return engine

    def _tensor(self, engine: "tensorrt.ICudaEngine", index: int) -> "tuple[tensorrt.TensorIOMode, TensorInfo]":
        name = engine.get_tensor_name(index)
        shape = tuple(size if size >= 0 else None for size in engine.get_tensor_shape(name))
        kind = engine.get_tensor_dtype(name).name
        return engine.get_tensor_mode(name), TensorInfo(name=name, shape=shape, dtype=dtype_name(kind))

    def _range(self, engine: "tensorrt.ICudaEngine", profile: int) -> BatchRange:
        least, best, most = (next(iter(shape)) for shape in engine.get_tensor_profile_shape(self.input, profile))
        return BatchRange(least=least, best=best, most=most)

    def profile_for(self, batch: int) -> int | None:
        """The first profile that takes a batch; None if none does."""
        fitting = (place for place, each in enumerate(self.ranges) if each.least <= batch <= each.most)
        return next(fitting, None)

    def context(self) -> "tensorrt.IExecutionContext":
        """Something to run it in, in one thread at a time, once it was lent `scratch_bytes` of memory.

        Raises:
            DeviceMemoryError: there is not enough memory.
            BackendError: it cannot be made, or the engine was freed.
        """
        with self._lock:
            context = self._new_context(self._alive())
        if context is None:
            self.fail("cannot make an execution context")
        return context

    def scratch_bytes(self, profile: int) -> int:
        """Memory of the device that a context computes in, in one of the profiles."""
        with self._lock:
            engine = self._alive()
            if self._streams_weights:
                # Of all profiles: of a single one the bindings of 10.3 leave out what streaming takes.
                return int(engine.device_memory_size_v2)
            return int(engine.get_device_memory_size_for_profile_v2(profile))

    def can_capture(self, context: "tensorrt.IExecutionContext", stream_handle: int) -> bool:
        """Return whether a run of this context can be captured as a graph, as far as the library knows."""
        del context, stream_handle
        return True

    def ran(self, profile: int, batch: int) -> None:
        """Take note of a batch that has run in a profile; the device's context is current."""

    def information(self) -> str:
        """Layer information of the library, as JSON."""
        trt = self._library.trt
        with self._lock:
            inspector = self._alive().create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def fail(self, what: str) -> NoReturn:
        """Raise what the library's log says.

        Raises:
            DeviceMemoryError: that there is too little memory.
            BackendError: something else.
        """
        errors = self._log.take_errors()
        message = f"{self.title} {what}: {errors}"
        if OUT_OF_MEMORY.search(errors):
            raise DeviceMemoryError(message)
        raise BackendError(message)

    def free(self) -> None:
        """Let go of the engine, its runtime, and the one that loaded that, in this order. Contexts go before."""
        self._engine = None
        while self._runtimes:
            self._runtimes.pop()

    def _alive(self) -> "tensorrt.ICudaEngine":
        if self._engine is None:
            message = "the engine was freed: load the bundle again"
            raise BackendError(message)
        return self._engine
