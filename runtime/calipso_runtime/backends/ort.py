"""ONNX Runtime: its sessions, what its providers share, and the CPU's.

A provider that is listed is not a provider that works: onnxruntime-gpu lists CUDA on a machine
without a GPU and quietly computes on the CPU. So the provider is read back from the session.
"""

import copy
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from calipso_runtime import devices
from calipso_runtime.backends import GpuOptions, TensorInfo, free_input, ort_cache
from calipso_runtime.bundle import Bundle
from calipso_runtime.errors import BackendError, BackendUnavailableError, BundleCorruptError
from calipso_runtime.graph_file import METADATA_RUN_BATCH, weights_file
from calipso_runtime.head.file import takes_token_ids
from calipso_runtime.pair_sums import may_overflow

if TYPE_CHECKING:
    from typing import Self

try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as _native
except ImportError as error:
    _MESSAGE = f"onnxruntime cannot be imported ({error}): pip install 'calipso[ort]', or 'calipso[ort-gpu]'"
    raise BackendUnavailableError(_MESSAGE) from error

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
NV_TENSORRT_RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
# Providers that need NVIDIA's driver: without it they are not even tried, for they would log and fall back.
NEED_CUDA = (CUDA_PROVIDER, TENSORRT_PROVIDER, NV_TENSORRT_RTX_PROVIDER)

# y = x of float32 [1], to see whether a provider comes up. Written by tests/runtime/make_identity_model.py.
IDENTITY_MODEL = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201695a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)

# For the files of single providers, which do not import onnxruntime themselves: it may be missing.
Session: TypeAlias = onnxruntime.InferenceSession
OrtValue: TypeAlias = onnxruntime.OrtValue
RunOptions: TypeAlias = onnxruntime.RunOptions
SessionOptions: TypeAlias = onnxruntime.SessionOptions
# A device and the provider that computes on it. Before 1.23 there were none.
Device: TypeAlias = Any
# Answers a batch: see `Backend.run`.
Ask: TypeAlias = Callable[[npt.NDArray[np.floating], Sequence[str]], dict[str, npt.NDArray[np.floating]]]

_registering = threading.Lock()
# Providers whose libraries this process registered: where they have no device, onnxruntime does not list them.
_registered: set[str] = set()
_KEPT = "session.optimized_model_external_initializers"
# Makes int8 weights uint8, whose products onnxruntime sums exactly on an x86 CPU without VNNI.
UNSIGNED_WEIGHTS = "session.x64quantprecision"
_FATAL = 4  # severity of onnxruntime's log: what it would print is in the exceptions
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
# Who computes what the provider asked for does not; always the CPU in the end.
_NEXT = {TENSORRT_PROVIDER: CUDA_PROVIDER}
# TF32 keeps 10 bits of a mantissa: a bundle of precision "fp32" says that its arithmetic is fp32.
_PROVIDER_OPTIONS: Mapping[str, dict[str, str]] = {CUDA_PROVIDER: {"use_tf32": "0"}}
# onnxruntime's exceptions have no common base but Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    OSError,
)
_UNREADABLE = (
    _native.InvalidProtobuf,
    _native.InvalidGraph,
    _native.InvalidArgument,
    _native.NoModel,
    _native.Fail,  # an empty file, up to 1.20
)


def version() -> str:
    """Of onnxruntime."""
    return str(onnxruntime.__version__)


def listed_providers() -> list[str]:
    """Providers that this build of onnxruntime has, working or not."""
    return list(onnxruntime.get_available_providers())


def register_plugin(provider: str, library: str) -> None:
    """Load the library of an execution provider, once in a process. Raises onnxruntime's own errors.

    A second time would list its devices twice, or fail and crash the next session.
    """
    with _registering:
        if not plugin_devices(provider) and provider not in _registered:
            onnxruntime.register_execution_provider_library(provider, library)
            _registered.add(provider)


def plugin_devices(provider: str) -> list[Device]:
    """Return what a registered provider can compute on; GPUs come first."""
    found = [each for each in onnxruntime.get_ep_devices() if each.ep_name == provider]
    return sorted(found, key=lambda each: each.device.type != onnxruntime.OrtHardwareDeviceType.GPU)


def open_on_plugin(
    model: str | bytes,
    provider: str,
    *,
    threads: int | None,
    session_settings: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
) -> Session:
    """Open a graph on the first device of a registered provider.

    Args:
        model: a path, or the graph itself.
        provider: its name.
        threads: inside an operator, on the CPU.
        session_settings: of the session.
        settings: of the provider.
    """
    options = session_options(threads)
    for name, value in session_settings.items():
        options.add_session_config_entry(name, value)
    options.add_provider_for_devices(plugin_devices(provider)[:1], dict(settings or {}))
    return onnxruntime.InferenceSession(model, options, enable_fallback=0)


def takes_plugins() -> bool:
    """Whether this onnxruntime loads providers from libraries of their own: 1.23 is the first."""
    return hasattr(onnxruntime, "register_execution_provider_library")


def why_unavailable(provider: str) -> str | None:
    """Try a provider on a graph of one node.

    Returns:
        None if a session really runs on it, else the reason in words.
    """
    listed = listed_providers()
    if provider not in listed:
        return f"onnxruntime {version()} was built without {provider}; it has {', '.join(listed)}"
    if (reason := why_no_driver(provider)) is not None:
        return reason
    return why_it_fails(provider, lambda: open_session(IDENTITY_MODEL, provider, threads=1))


def why_no_driver(provider: str) -> str | None:
    """Return why a provider of NVIDIA cannot work here; None for any other, or where the driver has a device."""
    if provider in NEED_CUDA and (problem := devices.cuda_driver().problem) is not None:
        return f"{provider} needs a CUDA device: {problem}"
    return None


def why_it_fails(provider: str, opened: Callable[[], Session]) -> str | None:
    """Run a session on the graph of one node, and return why that fails or runs elsewhere; None where it works."""
    try:
        session = opened()
        session.run(None, {"x": np.zeros(1, np.float32)})
    except ORT_ERRORS as error:
        return f"{provider} does not come up: {error}"
    return _fell_back(session, provider)


class OrtBackend:
    """One session on one execution provider. `run` may be called from several threads at once.

    Args:
        bundle: the graphs, whose hashes were checked; external data is found beside them.
        threads: of the computation inside an operator, on the CPU. None leaves it to onnxruntime, one per
            physical core, unless a container allows less. Operators run one after another whatever it is.
        keep_optimised: whether what an engine made of a large graph is kept in the cache folder.

    Raises:
        BackendUnavailableError: the provider is not really in use on this machine.
        BundleCorruptError: the file is no graph that onnxruntime can read.
        BackendError: it is a graph, but this onnxruntime cannot run it.
    """

    name: str
    wanted_provider: str

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        keep_optimised: bool = True,
        gpu: GpuOptions | None = None,
    ) -> None:
        if (reason := self.why_unavailable()) is not None:
            raise BackendUnavailableError(reason)
        self._threads = threads
        self._gpu = gpu or GpuOptions()
        model_path = self._choose_graph(bundle)
        self.graph = model_path.name
        try:
            session, metadata = self._open(model_path, bundle, keep=keep_optimised)
        except _UNREADABLE as error:
            message = (
                f"{model_path} is not a graph that onnxruntime {version()} can read: {error}. "
                "Copy or export it again, or upgrade onnxruntime"
            )
            raise BundleCorruptError(message) from error
        except ORT_ERRORS as error:
            message = f"onnxruntime {version()} cannot load {model_path} on {self.wanted_provider}: {error}"
            raise BackendError(message) from error
        if (reason := _fell_back(session, self.wanted_provider)) is not None:
            raise BackendUnavailableError(reason)
        self.provider: str = session.get_providers()[0]
        self.metadata: Mapping[str, str] = types.MappingProxyType(dict(metadata))
        self.inputs: Sequence[TensorInfo] = tuple(_info(node) for node in session.get_inputs())
        self.outputs: Sequence[TensorInfo] = tuple(_info(node) for node in session.get_outputs())
        self._session: Session | None = session
        self._ask: Ask | None = self._asker(session, {})

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None if a session really runs on the provider, else the reason in words."""
        return why_unavailable(cls.wanted_provider)

    def run(self, image: npt.NDArray[np.floating], outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
        """Answer a batch, in equal parts where it is too large for one: see `Backend.run`."""
        ask = self._ask
        if ask is None:
            message = f"the {self.name} backend is closed: load the bundle again"
            raise BackendError(message)
        most = self._most_pictures() or len(image)
        try:
            if len(image) <= most:
                return ask(image, outputs)
            parts = [ask(part, outputs) for part in np.array_split(image, -(-len(image) // most))]
        except ORT_ERRORS as error:
            message = f"{self.name} failed on a batch of shape {list(image.shape)}: {error}"
            raise BackendError(message) from error
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def close(self) -> None:
        """Drop the session; onnxruntime frees its memory once no `run` is using it."""
        self._ask = self._session = None

    def _choose_graph(self, bundle: Bundle) -> Path:
        return bundle.model_path

    def _open(self, model_path: Path, bundle: Bundle, *, keep: bool) -> tuple[Session, Mapping[str, str]]:
        """A session, and the graph's metadata. Raises onnxruntime's own errors.

        Args:
            model_path: the graph.
            bundle: whose graph it is.
            keep: whether what is made of it may be kept.
        """
        raise NotImplementedError

    def _asker(self, session: Session, held: Mapping[str, npt.NDArray[np.generic]]) -> Ask:
        """What answers a batch, and raises onnxruntime's own errors.

        Args:
            session: whose inputs are `image`, and those that are held.
            held: inputs that stay, by name.
        """
        # On the CPU numpy's memory is read in place. What computes elsewhere copies it by itself.
        options = run_options()
        name = free_input((node.name for node in session.get_inputs()), held)

        def ask(image: npt.NDArray[np.floating], outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
            values = session.run(list(outputs), {name: image, **held}, options)
            return dict(zip(outputs, values, strict=True))

        return ask

    def _holding(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> "Self":
        """See `HeadBackend.bind`: for those providers that can."""
        session = self._session
        if session is None:
            message = f"the {self.name} backend is closed: load the bundle again"
            raise BackendError(message)
        bound = copy.copy(self)
        bound._hold(session, arrays)  # noqa: SLF001 - a copy of itself
        return bound

    def _hold(self, session: Session, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self.inputs = tuple(each for each in self.inputs if each.name not in arrays)
        try:
            self._ask = self._asker(session, arrays)
        except ORT_ERRORS as error:
            message = f"{self.name} cannot hold a head of {sum(each.nbytes for each in arrays.values())} bytes: {error}"
            raise BackendError(message) from error

    def _most_pictures(self) -> int | None:
        """How many pictures may be asked at once, or None."""
        return None


class OrtCpuBackend(OrtBackend):
    """ONNX Runtime on the CPU, on the graph that was made for it."""

    name = "ort"
    wanted_provider = CPU_PROVIDER

    def _choose_graph(self, bundle: Bundle) -> Path:
        # Its convolutions over rows are measured on x86-64 only; elsewhere the portable graph is safe. But where that
        # has both towers, this one computes a half of it.
        if bundle.ort_model_path is not None and (devices.has_x86_vectors() or takes_token_ids(bundle)):
            return bundle.ort_model_path
        return bundle.model_path

    def _open(self, model_path: Path, bundle: Bundle, *, keep: bool) -> tuple[Session, Mapping[str, str]]:
        """Open the graph that an earlier process kept; else optimise it now, and keep it."""
        weights, unsigned = weights_file(model_path), may_overflow(bundle)

        def fresh(keep_in: Path | None = None) -> Session:
            try:
                return open_session(
                    str(model_path),
                    self.wanted_provider,
                    threads=self._threads,
                    keep_in=keep_in,
                    unsigned_weights=unsigned,
                )
            except ORT_ERRORS as error:
                if not unsigned:
                    raise
                # Where the graph itself is at fault, this says so.
                open_session(str(model_path), self.wanted_provider, threads=self._threads)
                message = (
                    f"products of {model_path}'s int8 weights can overflow on this CPU (x86 without VNNI), and "
                    f"onnxruntime {version()} could not convert them: export the bundle again, without --full-range. "
                    f"onnxruntime says: {error}"
                )
                raise BackendError(message) from error

        size_bytes = sum(path.stat().st_size for path in (model_path, weights) if path.is_file())
        if keep and ort_cache.is_worth_it(model_path, size_bytes):
            engine = f"onnxruntime {version()}{', unsigned weights' if unsigned else ''}"
            folder = ort_cache.entry_folder(bundle.digest, graph=model_path.name, engine=engine)
            if (kept := self._open_kept(folder)) is not None:
                return kept
            if (
                ort_cache.store(folder, lambda work: metadata_of(fresh(work)))
                and (kept := self._open_kept(folder)) is not None
            ):
                return kept
        session = fresh()
        return session, metadata_of(session)

    def bind(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> "Self":
        """See `HeadBackend.bind`."""
        return self._holding(arrays)

    def _most_pictures(self) -> int | None:
        """As many as the graph runs fastest."""
        most = self.metadata.get(METADATA_RUN_BATCH)
        return None if most is None else int(most)

    def _open_kept(self, folder: Path) -> tuple[Session, Mapping[str, str]] | None:
        kept = ort_cache.find(folder)
        if kept is None:
            return None
        try:
            session = open_session(str(kept[0]), self.wanted_provider, threads=self._threads, is_optimised=True)
        except ORT_ERRORS:
            # Written by something else, or damaged: it is made again.
            ort_cache.remove(folder)
            return None
        self.graph = f"{self.graph}, as optimised for this CPU before,"
        return session, kept[1]


def open_session(
    model: str | bytes,
    provider: str,
    *,
    threads: int | None,
    settings: Mapping[str, str] | None = None,
    keep_in: Path | None = None,
    is_optimised: bool = False,
    unsigned_weights: bool = False,
) -> Session:
    """Open a graph.

    Args:
        model: a path, or the graph itself.
        provider: what computes it. What it cannot, CUDA does where it is TensorRT, and then the CPU.
        threads: inside an operator, on the CPU.
        settings: further options of the provider.
        keep_in: a folder to write it to as it was optimised, weights in the engine's own order.
        is_optimised: whether it was read from such a folder.
        unsigned_weights: whether int8 weights are converted to uint8, for CPUs on which their products may overflow.
    """
    options = session_options(threads)
    if is_optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if unsigned_weights:
        options.add_session_config_entry(UNSIGNED_WEIGHTS, "1")
    if keep_in is not None:
        options.optimized_model_filepath = str(keep_in / ort_cache.GRAPH_FILE)
        options.add_session_config_entry(f"{_KEPT}_file_name", ort_cache.WEIGHTS_FILE)
        options.add_session_config_entry(f"{_KEPT}_min_size_in_bytes", "1024")
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    providers = [
        (name, {**_PROVIDER_OPTIONS.get(name, {}), **(settings or {} if name == provider else {})})
        for name in dict.fromkeys((provider, _NEXT.get(provider, CPU_PROVIDER), CPU_PROVIDER))
    ]
    # Without enable_fallback=0 onnxruntime prints a failure to stdout and goes on with the CPU.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def session_options(threads: int | None) -> SessionOptions:
    """What all sessions have in common."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.inter_op_num_threads = 1
    # 0 is one per physical core, whatever a container allows.
    options.intra_op_num_threads = threads or devices.cpu_quota() or 0
    return options


def run_options() -> RunOptions:
    """Ask for what the wanted outputs need; builds for inference compute the whole graph all the same.

    microsoft/onnxruntime#16013. Beside a tower a head costs next to nothing; two towers are given to it as two graphs.
    """
    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return options


def metadata_of(session: Session) -> Mapping[str, str]:
    """The graph's own key-value pairs."""
    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    return metadata


def _fell_back(session: Session, provider: str) -> str | None:
    got = session.get_providers()
    if got[:1] == [provider]:
        return None
    return f"{provider} does not come up: onnxruntime {version()} fell back to {', '.join(got)}"


def _info(node: onnxruntime.NodeArg) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorInfo(name=node.name, shape=shape, dtype=_DTYPES.get(node.type, node.type))
