"""ONNX Runtime on the CPU and on CUDA: the only file that imports onnxruntime.

A provider that is listed is not a provider that works: onnxruntime-gpu lists CUDA on a machine
without a GPU and quietly computes on the CPU. So the provider is read back from the session.
"""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calipso_runtime import devices
from calipso_runtime.backends import TensorInfo
from calipso_runtime.errors import BackendError, BackendUnavailableError, BundleCorruptError

try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as _native
except ImportError as error:
    _MESSAGE = f"onnxruntime cannot be imported ({error}): pip install 'calipso[ort]', or 'calipso[ort-gpu]'"
    raise BackendUnavailableError(_MESSAGE) from error

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
# Providers that need NVIDIA's driver: without it they are not even tried, for they would log and fall back.
NEED_CUDA = (CUDA_PROVIDER, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")

# y = x of float32 [1], to see whether a provider comes up. Written by tests/runtime/make_identity_model.py.
IDENTITY_MODEL = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201695a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)

_FATAL = 4  # severity of onnxruntime's log: what it would print is in the exceptions
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
# TF32 keeps 10 bits of a mantissa: a bundle of precision "fp32" says that its arithmetic is fp32.
_PROVIDER_OPTIONS: Mapping[str, dict[str, str]] = {CUDA_PROVIDER: {"use_tf32": "0"}}
# onnxruntime's exceptions have no common base but Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = (
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


def why_unavailable(provider: str) -> str | None:
    """Try a provider on a graph of one node.

    Returns:
        None if a session really runs on it, else the reason in words.
    """
    listed = listed_providers()
    if provider not in listed:
        return f"onnxruntime {version()} was built without {provider}; it has {', '.join(listed)}"
    if provider in NEED_CUDA and (problem := devices.cuda_driver().problem) is not None:
        return f"{provider} needs a CUDA device: {problem}"
    try:
        session = _session(IDENTITY_MODEL, provider, threads=1)
        session.run(None, {"x": np.zeros(1, np.float32)})
    except _ORT_ERRORS as error:
        return f"{provider} does not come up: {error}"
    return _fell_back(session, provider)


class OrtBackend:
    """One session on one execution provider. `run` may be called from several threads at once.

    Args:
        model_path: the graph; external data is found beside it.
        threads: of the computation inside an operator, on the CPU. None leaves it to onnxruntime:
            one per physical core. Operators run one after another whatever it is.

    Raises:
        BackendUnavailableError: the provider is not really in use on this machine.
        BundleCorruptError: the file is no graph that onnxruntime can read.
        BackendError: it is a graph, but this onnxruntime cannot run it.
    """

    name: str
    wanted_provider: str

    def __init__(self, model_path: Path, *, threads: int | None = None) -> None:
        if (reason := why_unavailable(self.wanted_provider)) is not None:
            raise BackendUnavailableError(reason)
        try:
            session = _session(str(model_path), self.wanted_provider, threads=threads)
        except _UNREADABLE as error:
            message = (
                f"{model_path} is not a graph that onnxruntime {version()} can read: {error}. "
                "Copy or export it again, or upgrade onnxruntime"
            )
            raise BundleCorruptError(message) from error
        except _ORT_ERRORS as error:
            message = f"onnxruntime {version()} cannot load {model_path} on {self.wanted_provider}: {error}"
            raise BackendError(message) from error
        if (reason := _fell_back(session, self.wanted_provider)) is not None:
            raise BackendUnavailableError(reason)
        self.provider: str = session.get_providers()[0]
        self.metadata: Mapping[str, str] = types.MappingProxyType(dict(session.get_modelmeta().custom_metadata_map))
        self.inputs: Sequence[TensorInfo] = tuple(_info(node) for node in session.get_inputs())
        self.outputs: Sequence[TensorInfo] = tuple(_info(node) for node in session.get_outputs())
        self._session: onnxruntime.InferenceSession | None = session

    def run(self, image: npt.NDArray[np.float32], outputs: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Answer a batch: see `Backend.run`."""
        session = self._session
        if session is None:
            message = f"the {self.name} backend is closed: load the bundle again"
            raise BackendError(message)
        try:
            values = session.run(list(outputs), {"image": image})
        except _ORT_ERRORS as error:
            message = f"{self.name} failed on a batch of shape {list(image.shape)}: {error}"
            raise BackendError(message) from error
        return dict(zip(outputs, values, strict=True))

    def close(self) -> None:
        """Drop the session; onnxruntime frees its memory once no `run` is using it."""
        self._session = None


class OrtCpuBackend(OrtBackend):
    """ONNX Runtime on the CPU."""

    name = "ort"
    wanted_provider = CPU_PROVIDER


class OrtCudaBackend(OrtBackend):
    """ONNX Runtime on an NVIDIA GPU; single operators that CUDA lacks run on the CPU."""

    name = "ort-cuda"
    wanted_provider = CUDA_PROVIDER


def _session(model: str | bytes, provider: str, *, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads or 0
    providers = [(name, _PROVIDER_OPTIONS.get(name, {})) for name in dict.fromkeys((provider, CPU_PROVIDER))]
    # Without enable_fallback=0 onnxruntime prints a failure to stdout and goes on with the CPU.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def _fell_back(session: onnxruntime.InferenceSession, provider: str) -> str | None:
    got = session.get_providers()
    if got[:1] == [provider]:
        return None
    return f"{provider} does not come up: onnxruntime {version()} fell back to {', '.join(got)}"


def _info(node: onnxruntime.NodeArg) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorInfo(name=node.name, shape=shape, dtype=_DTYPES.get(node.type, node.type))
