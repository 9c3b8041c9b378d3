"""An engine of TensorRT: the lean runtime of a version-compatible plan, and weights that were stripped."""

import os
from pathlib import Path

import tensorrt as trt

from calipso_runtime.backends.tensorrt.log import LIBRARY, Log
from calipso_runtime.backends.tensorrt_common.engine import Engine
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.errors import BackendError, BackendUnavailableError

LEAN_RUNTIME_VARIABLE = "CALIPSO_LEAN_RUNTIME"


class TensorRtEngine(Engine):
    """See `Engine`.

    Args:
        path: of a plan whose hash was checked.
        options: that it was built with.
        model_path: the graph, for an engine whose weights were stripped.
        built_by: version of TensorRT that wrote it.
    """

    _log: Log

    def __init__(self, path: Path, options: BuildOptions, *, model_path: Path, built_by: str) -> None:
        self._model_path, self._built_by = model_path, built_by
        super().__init__(LIBRARY, path, options)

    def _start_runtimes(self, options: BuildOptions) -> list[trt.Runtime]:
        """The runtime that takes the plan, behind the one that had to load it."""
        runtime = self._new_runtime()
        if not options.version_compatible:
            return [runtime]
        # Such a plan is run by the lean runtime of the version that built it. It comes from this machine, never
        # out of the plan: engine_host_code_allowed stays off.
        library = os.environ.get(LEAN_RUNTIME_VARIABLE) or f"libnvinfer_lean.so.{self._built_by.partition('.')[0]}"
        lean = runtime.load_runtime(library)
        if lean is None:
            message = (
                f"a version-compatible engine needs the lean runtime of TensorRT {self._built_by} ({library}): "
                f"{self._log.take_errors()}. Install libnvinfer-lean, or set {LEAN_RUNTIME_VARIABLE} to the path of "
                "the library, which pip's tensorrt-lean has in a folder of its own"
            )
            raise BackendUnavailableError(message)
        return [runtime, lean]

    def _complete(self, engine: trt.ICudaEngine, path: Path, options: BuildOptions) -> None:
        if not options.strip_weights:
            return
        refitter = trt.Refitter(engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_file(str(self._model_path)) or not refitter.refit_cuda_engine():
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            message = (
                f"the weights of {self._model_path} do not go into {path}: "
                f"{'; '.join(errors) or self._log.take_errors()}. Build it again, or without --strip-weights"
            )
            raise BackendError(message)
        if missing := refitter.get_missing_weights():
            message = (
                f"{path} lacks the weights {', '.join(missing)} after {self._model_path} was put in: build it again"
            )
            raise BackendError(message)

    def _new_context(self, engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
        return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
