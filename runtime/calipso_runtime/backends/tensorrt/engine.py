"""A deserialised engine: its tensors, its profiles, and contexts to run it in."""

import mmap
import os
import re
import threading
from pathlib import Path
from typing import NoReturn

import tensorrt as trt

from calipso_runtime.backends import TensorInfo, free_input
from calipso_runtime.backends.tensorrt import version
from calipso_runtime.backends.tensorrt.log import Log, started
from calipso_runtime.backends.tensorrt_common.network import dtype_name
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.errors import BackendError, BackendUnavailableError, DeviceMemoryError

LEAN_RUNTIME_VARIABLE = "CALIPSO_LEAN_RUNTIME"
# As TensorRT and CUDA write in the log that there is too little of it.
OUT_OF_MEMORY = re.compile(r"memory|cudaMalloc|OOM", re.IGNORECASE)


class Engine:
    """An engine in the memory of the device whose context is current.

    Args:
        path: of a plan whose hash was checked.
        options: that it was built with.
        model_path: the graph, for an engine whose weights were stripped.
        built_by: version of TensorRT that wrote it.

    Attributes:
        inputs: of the graph; the batch is dynamic.
        input: name of the one that takes what is classified.
        outputs: of the graph.
        ranges: batches that each profile takes.

    Raises:
        BackendUnavailableError: TensorRT does not take this plan here.
        BackendError: the weights cannot be put in.
    """

    def __init__(self, path: Path, options: BuildOptions, *, model_path: Path, built_by: str) -> None:
        self._log = Log()
        # An engine does not keep a runtime that another one loaded, nor that one: their order of going is ours.
        runtimes = _runtimes(self._log, options, built_by)
        engine = self._deserialised(runtimes[-1], path, options)
        if options.strip_weights:
            self._refit(engine, path, model_path)
        if options.weight_streaming:
            # Has to be set before the first context; it decides what stays on the host by the memory that is free.
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        tensors = [self._tensor(engine, index) for index in range(engine.num_io_tensors)]
        self.inputs = tuple(info for mode, info in tensors if mode == trt.TensorIOMode.INPUT)
        self.outputs = tuple(info for mode, info in tensors if mode == trt.TensorIOMode.OUTPUT)
        self.input = free_input((info.name for info in self.inputs), ())
        self.ranges = tuple(self._range(engine, each) for each in range(engine.num_optimization_profiles))
        self._streams_weights = options.weight_streaming
        self._engine: trt.ICudaEngine | None = engine
        self._runtimes = runtimes
        # An engine is no thread's own, unlike its contexts: who asks it for something takes turns.
        self._lock = threading.Lock()

    def _deserialised(self, runtime: trt.Runtime, path: Path, options: BuildOptions) -> trt.ICudaEngine:
        if options.dla_core is not None:
            runtime.DLA_core = options.dla_core
        # Mapped: on a Jetson host and device share the memory that a copy would take.
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            message = (
                f"TensorRT {version()} does not take {path}: {self._log.take_errors()}. "
                "Build it again on this machine: calipso build"
            )
            raise BackendUnavailableError(message)
        return engine

    def _refit(self, engine: trt.ICudaEngine, path: Path, model_path: Path) -> None:
        refitter = trt.Refitter(engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_file(str(model_path)) or not refitter.refit_cuda_engine():
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            message = (
                f"the weights of {model_path} do not go into {path}: {'; '.join(errors) or self._log.take_errors()}. "
                "Build it again, or without --strip-weights"
            )
            raise BackendError(message)
        if missing := refitter.get_missing_weights():
            message = f"{path} lacks the weights {', '.join(missing)} after {model_path} was put in: build it again"
            raise BackendError(message)

    def _tensor(self, engine: trt.ICudaEngine, index: int) -> tuple[trt.TensorIOMode, TensorInfo]:
        name = engine.get_tensor_name(index)
        shape = tuple(size if size >= 0 else None for size in engine.get_tensor_shape(name))
        kind = engine.get_tensor_dtype(name).name
        return engine.get_tensor_mode(name), TensorInfo(name=name, shape=shape, dtype=dtype_name(kind))

    def _range(self, engine: trt.ICudaEngine, profile: int) -> BatchRange:
        least, best, most = (next(iter(shape)) for shape in engine.get_tensor_profile_shape(self.input, profile))
        return BatchRange(least=least, best=best, most=most)

    def profile_for(self, batch: int) -> int | None:
        """The first profile that takes a batch; None if none does."""
        fitting = (place for place, each in enumerate(self.ranges) if each.least <= batch <= each.most)
        return next(fitting, None)

    def context(self) -> trt.IExecutionContext:
        """Something to run it in, in one thread at a time, once it was lent `scratch_bytes` of memory.

        Raises:
            DeviceMemoryError: there is not enough memory.
            BackendError: it cannot be made, or the engine was freed.
        """
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._lock:
            context = self._alive().create_execution_context(strategy)
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

    def information(self) -> str:
        """TensorRT's layer information, as JSON."""
        with self._lock:
            inspector = self._alive().create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def fail(self, what: str) -> NoReturn:
        """Raise what TensorRT's log says.

        Raises:
            DeviceMemoryError: that there is too little memory.
            BackendError: something else.
        """
        errors = self._log.take_errors()
        message = f"TensorRT {version()} {what}: {errors}"
        if OUT_OF_MEMORY.search(errors):
            raise DeviceMemoryError(message)
        raise BackendError(message)

    def free(self) -> None:
        """Let go of the engine, its runtime, and the one that loaded that, in this order. Contexts go before."""
        self._engine = None
        while self._runtimes:
            self._runtimes.pop()

    def _alive(self) -> trt.ICudaEngine:
        if self._engine is None:
            message = "the engine was freed: load the bundle again"
            raise BackendError(message)
        return self._engine


def why_unavailable() -> str | None:
    """Why no runtime can be made, or None: asked without a plan."""
    log = Log()
    try:
        started(lambda: trt.Runtime(log), log)
    except BackendUnavailableError as error:
        return str(error)
    return None


def _runtimes(log: Log, options: BuildOptions, built_by: str) -> list[trt.Runtime]:
    """The runtime that takes the plan, behind the one that had to load it."""
    runtime = started(lambda: trt.Runtime(log), log)
    if not options.version_compatible:
        return [runtime]
    # Such a plan is run by the lean runtime of the version that built it. It comes from this machine, never
    # out of the plan: engine_host_code_allowed stays off.
    library = os.environ.get(LEAN_RUNTIME_VARIABLE) or f"libnvinfer_lean.so.{built_by.partition('.')[0]}"
    lean = runtime.load_runtime(library)
    if lean is None:
        message = (
            f"a version-compatible engine needs the lean runtime of TensorRT {built_by} ({library}): "
            f"{log.take_errors()}. Install libnvinfer-lean, or set {LEAN_RUNTIME_VARIABLE} to the path of the library, "
            "which pip's tensorrt-lean has in a folder of its own"
        )
        raise BackendUnavailableError(message)
    return [runtime, lean]
