"""OpenVINO on the CPU: the only file that imports openvino. It runs the portable graph."""

import copy
import queue
import threading
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from calipso_runtime import devices
from calipso_runtime.backends import GpuOptions, TensorInfo, free_input
from calipso_runtime.bundle import Bundle
from calipso_runtime.caching import cache_folder
from calipso_runtime.errors import BackendError, BackendUnavailableError, BundleCorruptError
from calipso_runtime.manifest import EMBEDDING, TOKEN_IDS
from calipso_runtime.pair_sums import may_overflow

if TYPE_CHECKING:
    from typing import Self

try:
    import openvino
except ImportError as error:
    _MESSAGE = f"openvino cannot be imported ({error}): pip install 'calipso[openvino]'"
    raise BackendUnavailableError(_MESSAGE) from error

_DEVICE = "CPU"
# A bundle of precision "fp32" says that its arithmetic is fp32: on CPUs with bf16 the default is another.
_PRECISION = "f32"
# Switches eight-bit arithmetic off. OpenVINO accepts it but does not list it among its supported properties.
_INT8_ARITHMETIC = "LP_TRANSFORMS_MODE"
# Smaller graphs are compiled faster than they are looked up.
_MIN_KEPT_BYTES = 32 * 2**20
# Which outputs; none where a graph is compiled as a whole.
_Part: TypeAlias = frozenset[str]


class OpenVinoBackend:
    """One compiled model. `run` may be called from several threads at once: each takes a request of its own.

    Args:
        bundle: the graphs, whose hashes were checked.
        threads: of the computation on the CPU; None leaves it to OpenVINO, one per physical core, unless a
            container allows less.
        keep_optimised: whether a large graph, as it was compiled, is kept in the cache folder.

    Raises:
        BackendUnavailableError: openvino is not installed.
        BundleCorruptError: the file is no graph that OpenVINO can read.
        BackendError: it is a graph, but this OpenVINO cannot run it.
    """

    name = "openvino"

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        keep_optimised: bool = True,
        gpu: GpuOptions | None = None,
    ) -> None:
        del gpu  # it computes on the CPU
        path = bundle.model_path
        self.graph = path.name
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _PRECISION}
        if (count := threads or devices.cpu_quota()) is not None:
            options["INFERENCE_NUM_THREADS"] = str(count)
        kept_in = cache_folder() / "openvino"
        if may_overflow(bundle):
            # Its cache does not look at this property, so the two forms are kept apart here.
            options[_INT8_ARITHMETIC], kept_in = "NO", kept_in / "no-int8"
        if keep_optimised and path.stat().st_size >= _MIN_KEPT_BYTES:
            options["CACHE_DIR"] = str(kept_in)
        core = openvino.Core()
        try:
            model = core.read_model(path)
            metadata = {key: str(value.value) for key, value in model.get_rt_info("framework").astype(dict).items()}
        except RuntimeError as error:
            message = f"{path} is not a graph that OpenVINO {openvino.__version__} can read: {error}. Export it again"
            raise BundleCorruptError(message) from error
        try:
            parts = _Parts(core, model, options)
            _, compiled = parts.of([model.outputs[0].get_any_name()] if not parts.are_several else [EMBEDDING])
        except RuntimeError as error:
            message = f"OpenVINO {openvino.__version__} cannot compile {path}: {error}"
            raise BackendError(message) from error
        self.provider: str = f"OpenVINO {', '.join(compiled.get_property('EXECUTION_DEVICES'))}"
        self.metadata: Mapping[str, str] = types.MappingProxyType(metadata)
        self.inputs: Sequence[TensorInfo] = tuple(_info(port) for port in model.inputs)
        self.outputs: Sequence[TensorInfo] = tuple(_info(port) for port in model.outputs)
        self._parts: _Parts | None = parts
        self._idle: dict[_Part, queue.SimpleQueue[openvino.InferRequest]] = {}
        self._held: Mapping[str, npt.NDArray[np.generic]] = {}

    def bind(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> "Self":
        """See `HeadBackend.bind`."""
        if self._parts is None:
            message = f"the {self.name} backend is closed: load the bundle again"
            raise BackendError(message)
        bound = copy.copy(self)
        bound._hold(arrays)  # noqa: SLF001 - a copy of itself
        return bound

    def _hold(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        # Requests keep what they were given: each head has its own.
        self._idle, self._held = {}, dict(arrays)
        self.inputs = tuple(each for each in self.inputs if each.name not in arrays)

    def run(self, image: npt.NDArray[np.floating], outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
        """Answer a batch: see `Backend.run`."""
        parts = self._parts
        if parts is None:
            message = f"the {self.name} backend is closed: load the bundle again"
            raise BackendError(message)
        try:
            part, compiled = parts.of(outputs)
            idle = self._idle.setdefault(part, queue.SimpleQueue())
            try:
                request = idle.get_nowait()
            except queue.Empty:
                request = compiled.create_infer_request()
            name = free_input((each.name for each in self.inputs), ())
            taken = {port.get_any_name() for port in compiled.inputs}
            given = {key: value for key, value in {name: image, **self._held}.items() if key in taken}
            request.infer(given, share_inputs=True)
            # Copied: the request's own memory is used again.
            answers = {name: np.array(request.get_tensor(name).data) for name in outputs}
        except RuntimeError as error:
            message = f"{self.name} failed on a batch of shape {list(image.shape)}: {error}"
            raise BackendError(message) from error
        idle.put(request)
        return answers

    def close(self) -> None:
        """Drop the model; OpenVINO frees its memory once no `run` is using it."""
        self._parts = None
        self._idle = {}


class _Parts:
    """A graph, compiled; one with both towers a part at a time, as its outputs are asked for.

    OpenVINO computes a model as a whole: asked for the features of texts, it would run the image tower too.
    """

    def __init__(self, core: openvino.Core, model: openvino.Model, options: Mapping[str, str]) -> None:
        self._core, self._model, self._options = core, model, options
        self._lock = threading.Lock()
        self._compiled: dict[_Part, openvino.CompiledModel] = {}
        self.are_several = any(port.get_any_name() == TOKEN_IDS for port in model.inputs)

    def of(self, outputs: Sequence[str]) -> "tuple[_Part, openvino.CompiledModel]":
        """What gives these outputs, and its key. Raises RuntimeError: OpenVINO cannot compile it."""
        part: _Part = frozenset(outputs) if self.are_several else frozenset()
        with self._lock:
            if part not in self._compiled:
                model = _cut(self._model, part) if self.are_several else self._model
                self._compiled[part] = self._core.compile_model(model, _DEVICE, self._options)
            return part, self._compiled[part]


def _cut(model: openvino.Model, outputs: "_Part") -> openvino.Model:
    """The part of a model that these outputs need; nodes are shared."""
    results = [result for result in model.get_results() if result.output(0).get_any_name() in outputs]
    seen: set[str] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if (name := node.get_friendly_name()) not in seen:
            seen.add(name)
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    parameters = [each for each in model.get_parameters() if each.get_friendly_name() in seen]
    return openvino.Model(results, parameters)


def _info(port: openvino.ConstOutput) -> TensorInfo:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorInfo(name=port.get_any_name(), shape=shape, dtype=port.get_element_type().to_dtype().name)
