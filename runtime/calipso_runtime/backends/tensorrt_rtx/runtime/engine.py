"""An engine of TensorRT for RTX, which compiles its kernels on the GPU that runs it, and keeps them."""

from pathlib import Path
from typing import TYPE_CHECKING

from calipso_runtime.backends.tensorrt_common.engine import Engine
from calipso_runtime.backends.tensorrt_common.library import Library
from calipso_runtime.backends.tensorrt_rtx.bindings import trt
from calipso_runtime.backends.tensorrt_rtx.callbacks import Log
from calipso_runtime.backends.tensorrt_rtx.runtime.kernel_file import KernelFile
from calipso_runtime.engines.families import TENSORRT_RTX
from calipso_runtime.engines.options import BuildOptions

if TYPE_CHECKING:
    import tensorrt

LIBRARY = Library(trt=trt, engine=TENSORRT_RTX, new_log=Log)


class RtxEngine(Engine):
    """See `Engine`.

    Kernels are specialised for a batch size when it first comes (EAGER). The library's default (LAZY) computes with
    fallback kernels meanwhile, and changes to the specialised ones later: a captured graph would keep the fallback for
    ever, and answers could change while the engine runs, after they were checked.

    Graphs are captured by `Bound`, as for TensorRT, and not by the library too.

    Args:
        path: of a plan whose hash was checked.
        options: that it was built with.
        kernels: where compiled kernels are kept; None keeps none.
    """

    def __init__(self, path: Path, options: BuildOptions, kernels: KernelFile | None) -> None:
        self._kernels = kernels
        self._config: tensorrt.IRuntimeConfig | None = None
        self._cache: tensorrt.IRuntimeCache | None = None
        # Profiles and batches that have run, and how many of them had when kernels were last kept.
        self._sizes: set[tuple[int, int]] = set()
        self._kept = 0
        super().__init__(LIBRARY, path, options)

    def _complete(self, engine: "tensorrt.ICudaEngine", path: Path, options: BuildOptions) -> None:
        del path, options
        config = engine.create_runtime_config()
        if config is None:
            self.fail("cannot make a runtime configuration")
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        # Without a file too: the contexts of an engine share what one of them compiled.
        cache = config.create_runtime_cache()
        if cache is not None:
            self._fill(cache)
            config.set_runtime_cache(cache)
        self._config, self._cache = config, cache

    def _fill(self, cache: "tensorrt.IRuntimeCache") -> None:
        content = None if self._kernels is None else self._kernels.read()
        if self._kernels is not None and content is not None and not cache.deserialize(content):
            # Of another driver, or GPU: the library says so in its log, and it is no error of the engine.
            self._log.take_errors()
            self._kernels.drop()

    def _new_context(self, engine: "tensorrt.ICudaEngine") -> "tensorrt.IExecutionContext | None":
        return engine.create_execution_context(self._config)

    def can_capture(self, context: "tensorrt.IExecutionContext", stream_handle: int) -> bool:
        """See `Engine.can_capture`."""
        return bool(context.is_stream_capturable(stream_handle))

    def ran(self, profile: int, batch: int) -> None:
        """Keep kernels when the first size has run, the second, the fourth, ...: most are there after few writes."""
        with self._lock:
            if (profile, batch) in self._sizes:
                return
            self._sizes.add((profile, batch))
            if len(self._sizes).bit_count() == 1:
                self._keep()

    def free(self) -> None:
        """Keep the kernels, and let go of everything. Contexts go before."""
        with self._lock:
            if len(self._sizes) > self._kept:
                self._keep()
            self._config = self._cache = None
        super().free()

    def _keep(self) -> None:
        self._kept = len(self._sizes)
        if self._kernels is None or self._cache is None:
            return
        content = self._cache.serialize()
        if content is not None:
            self._kernels.write(bytes(content))
