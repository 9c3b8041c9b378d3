"""Engines behind one protocol: each in its own file, which alone imports it.

A new engine is one file and one line in `BACKENDS`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from calipso_runtime.bundle import Bundle
from calipso_runtime.errors import BackendUnavailableError, BundleSchemaError, UsageError
from calipso_runtime.head.classes import Head
from calipso_runtime.head.file import exported_head, manifest_of, takes_token_ids
from calipso_runtime.manifest import IMAGE, INPUTS
from calipso_runtime.pixel_input import OP

AUTO = "auto"
# Name on the command line and in `load`: module and class. Nothing of it is imported before it is used.
BACKENDS: Mapping[str, str] = {
    "tensorrt": "calipso_runtime.backends.tensorrt.backend:TensorRtBackend",
    "tensorrt-rtx": "calipso_runtime.backends.tensorrt_rtx.runtime.backend:RtxBackend",
    "ort": "calipso_runtime.backends.ort:OrtCpuBackend",
    "ort-cuda": "calipso_runtime.backends.ort_cuda:OrtCudaBackend",
    "ort-tensorrt": "calipso_runtime.backends.ort_tensorrt:OrtTensorRtBackend",
    "openvino": "calipso_runtime.backends.openvino:OpenVinoBackend",
}
# Execution providers that ONNX Runtime loads from packages of their own. They have to be asked for, "auto" takes none.
PLUGINS: Mapping[str, str] = {
    "ort-plugin:tensorrt-rtx": "calipso_runtime.backends.ort_plugin:RtxPlugin",
    "ort-plugin:webgpu": "calipso_runtime.backends.ort_plugin:WebGpuPlugin",
    "ort-plugin:openvino": "calipso_runtime.backends.ort_plugin:OpenVinoPlugin",
}
ALL_BACKENDS: Mapping[str, str] = {**BACKENDS, **PLUGINS}
# What "auto" tries, in this order. Not "ort-tensorrt": it builds engines first, for minutes, so it has to be asked for.
AUTO_ORDER = ("tensorrt", "tensorrt-rtx", "ort-cuda", "ort", "openvino")


# Whose Resize operator, on uint8 with antialiasing, was measured to be Pillow's (docs/pixels.md).
RESIZE_AS_PILLOW = ("ort",)
OVERSIZE = ("split", "refuse")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """How a GPU is used; a CPU has no use for it.

    Attributes:
        lanes: batches that may be under way at once, each with a context and memory of its own.
        oversize: what becomes of a batch larger than an engine takes: "split" or "refuse".
        cuda_graphs: capture batches of a size that comes again, and launch them as one.
        plan: record (.json) of the plan to load; None takes the one that fits.
        first_check: hold an engine that no GPU has run yet to the bundle's gates, the first time that it is loaded on
            a machine.

    Raises:
        UsageError: `lanes` is below 1, or `oversize` is something else.
    """

    lanes: int = 4
    oversize: str = "split"
    cuda_graphs: bool = True
    plan: Path | None = None
    first_check: bool = True

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.oversize not in OVERSIZE:
            message = f"lanes is {self.lanes} and oversize {self.oversize!r}: expected 1 or more, and split or refuse"
            raise UsageError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input or output of a graph.

    Attributes:
        name: as in the graph.
        shape: a dimension is None where it is dynamic.
        dtype: numpy's name of it, "float32".
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def free_input(inputs: Iterable[str], held: Iterable[str]) -> str:
    """Of a graph's inputs the one that is asked: what is classified comes first, and none that is held is asked."""
    left = [name for name in inputs if name not in held]
    return next((name for name in left if name in INPUTS), next(iter(left), IMAGE))


class Backend(Protocol):
    """One graph in one engine. `run` may be called from several threads at once.

    A class may have a class method `why_unavailable`, which tries its engine without a graph: None where it works,
    else the reason in words.

    Attributes:
        name: as in `ALL_BACKENDS`.
        provider: what computes in fact, read back from the engine: "CPUExecutionProvider".
        graph: name of the file that it loaded, and how, in words.
        metadata: the graph's own key-value pairs.
        inputs: of the graph.
        outputs: of the graph.
    """

    name: str
    provider: str
    graph: str
    metadata: Mapping[str, str]
    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]

    def run(self, image: npt.NDArray[Any], outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
        """Answer a batch.

        Args:
            image: [B,3,H,W], normalised, points [B,P,3] or pixels [B,H,W,C], or of a text tower token ids [N,L]; of the
                dtype in `inputs`.
            outputs: names of the outputs wanted.

        Raises:
            BackendError: the engine failed, or is closed.
        """

    def close(self) -> None:
        """Give the engine's memory back. Closing twice is allowed."""


class Pending(Protocol):
    """A batch under way."""

    def result(self) -> dict[str, npt.NDArray[np.floating]]:
        """Wait for the answers, by output. Raises BackendError: the device failed."""


@runtime_checkable
class DeviceBackend(Protocol):
    """What a backend has more whose device works beside the host.

    Its `run` takes arrays that lie on the device as well: anything with DLPack or `__cuda_array_interface__`,
    of the dtype in `inputs`, contiguous. They are read where they lie.
    """

    def submit(self, image: object, outputs: Sequence[str]) -> Pending:
        """Start a batch and go on: see `Backend.run`."""


@runtime_checkable
class HeadBackend(Protocol):
    """What a backend has more that runs graphs of several inputs: whose head is one, or token ids are."""

    def bind(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Backend:
        """The same graph in the same engine, with all inputs but one given once: `run` is asked for that one alone.

        Either may be bound again, and goes on answering with what it holds; the engine's memory is given back when
        all are closed or dropped. The arrays are read where they lie, and must not change.

        Raises:
            BackendError: the engine failed, or is closed.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which backends will be tried, in order, and why these."""

    candidates: tuple[str, ...]
    reason: str


def choose(name: str) -> Choice:
    """Resolve "auto" or a backend's name.

    Raises:
        UsageError: there is no backend of this name.
    """
    if name == AUTO:
        return Choice(candidates=AUTO_ORDER, reason=f"auto prefers {', then '.join(AUTO_ORDER)}")
    if name in ALL_BACKENDS:
        return Choice(candidates=(name,), reason=f"{name} was asked for")
    message = f"backend {name!r} is unknown: expected {AUTO}, {', '.join(ALL_BACKENDS)}"
    raise UsageError(message)


def connect(
    bundle: Bundle,
    *,
    backend: str,
    threads: int | None,
    keep_optimised: bool = True,
    gpu: GpuOptions | None = None,
) -> tuple[Backend, str]:
    """Load a graph into the first backend that is really there.

    Args:
        bundle: whose hashes were checked.
        backend: "auto" or a name of `ALL_BACKENDS`.
        threads: for the engine's computation on the CPU; None leaves it to the engine.
        keep_optimised: whether an engine may keep what it optimised in the cache folder.
        gpu: how a GPU is used.

    Returns:
        The backend, and why it is this one. Where the head is an input, that which was exported is bound.

    Raises:
        UsageError: there is no backend of this name.
        BackendUnavailableError: none of the candidates is on this machine.
        BundleCorruptError: the engine cannot read the graph.
    """
    choice = choose(backend)
    head = exported_head(bundle)
    binds = head is not None or takes_token_ids(bundle)
    refusals = []
    for name in choice.candidates:
        try:
            constructor = _constructor(name)
            _check_binds(name, constructor, binds=binds)
            _check_resizes(name, bundle)
            opened = constructor(bundle, threads=threads, keep_optimised=keep_optimised, gpu=gpu or GpuOptions())
        except BackendUnavailableError as error:
            if len(choice.candidates) == 1:
                raise
            refusals.append(f"{name} is not available: {error}")
            continue
        reason = "; ".join([f"{choice.reason}; {name} runs {opened.graph} on {opened.provider}", *refusals])
        return opened if head is None else _bound(opened, head), reason
    message = "no backend is available on this machine: " + "; ".join(refusals)
    raise BackendUnavailableError(message)


def why_unavailable(name: str) -> str | None:
    """Import a backend's engine, and try it where it can be tried without a graph.

    Returns:
        None if it works, else the reason in words.
    """
    try:
        constructor = _constructor(name)
    except BackendUnavailableError as error:
        return str(error)
    probe: Callable[[], str | None] | None = getattr(constructor, "why_unavailable", None)
    return None if probe is None else probe()


def _check_binds(name: str, constructor: Callable[..., Backend], *, binds: bool) -> None:
    if binds and not hasattr(constructor, "bind"):
        message = (
            f"{name} does not take graphs of several inputs: use ort or openvino, or export with --head-mode baked, or "
            "embed where the text tower is one of them"
        )
        raise BackendUnavailableError(message)


def _check_resizes(name: str, bundle: Bundle) -> None:
    """Refuse an engine that would resize otherwise: OpenVINO smooths nothing, TensorRT cannot, CUDA was not seen to."""
    try:
        pixels = manifest_of(bundle).pixels
    except BundleSchemaError:
        # What is wrong with a graph that tells nothing, its engine says best.
        return
    if pixels is not None and pixels.resize == OP and name not in RESIZE_AS_PILLOW:
        message = (
            f"{name} does not resize pictures as Pillow does, and this bundle leaves that to the engine "
            f"({', '.join(RESIZE_AS_PILLOW)} does): export it with --pixels-size HxW, for a resize that all compute"
        )
        raise BackendUnavailableError(message)


def _bound(engine: Backend, head: Head) -> Backend:
    try:
        return cast("HeadBackend", engine).bind(head.arrays())
    except BaseException:
        engine.close()
        raise


def _constructor(name: str) -> Callable[..., Backend]:
    module, _, attribute = ALL_BACKENDS[name].partition(":")
    return cast("Callable[..., Backend]", getattr(importlib.import_module(module), attribute))
