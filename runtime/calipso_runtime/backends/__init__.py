"""Engines behind one protocol: each in its own file, which alone imports it.

A new engine is one file and one line in `BACKENDS`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from calipso_runtime.bundle import Bundle
from calipso_runtime.errors import BackendUnavailableError, UsageError

AUTO = "auto"
# Name on the command line and in `load`: module and class. Nothing of it is imported before it is used.
BACKENDS: Mapping[str, str] = {
    "ort": "calipso_runtime.backends.ort:OrtCpuBackend",
    "ort-cuda": "calipso_runtime.backends.ort:OrtCudaBackend",
    "openvino": "calipso_runtime.backends.openvino:OpenVinoBackend",
}
# What "auto" tries, in this order.
AUTO_ORDER = ("ort-cuda", "ort", "openvino")


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


class Backend(Protocol):
    """One graph in one engine. `run` may be called from several threads at once.

    Attributes:
        name: as in `BACKENDS`.
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

    def run(self, image: npt.NDArray[np.floating], outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
        """Answer a batch.

        Args:
            image: [B,3,H,W], normalised, of the dtype in `inputs`.
            outputs: names of the outputs wanted.

        Raises:
            BackendError: the engine failed, or is closed.
        """

    def close(self) -> None:
        """Give the engine's memory back. Closing twice is allowed."""


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
    if name in BACKENDS:
        return Choice(candidates=(name,), reason=f"{name} was asked for")
    message = f"backend {name!r} is unknown: expected {AUTO}, {', '.join(BACKENDS)}"
    raise UsageError(message)


def connect(bundle: Bundle, *, backend: str, threads: int | None, keep_optimised: bool = True) -> tuple[Backend, str]:
    """Load a graph into the first backend that is really there.

    Args:
        bundle: whose hashes were checked.
        backend: "auto" or a name of `BACKENDS`.
        threads: for the engine's computation on the CPU; None leaves it to the engine.
        keep_optimised: whether an engine may keep what it optimised in the cache folder.

    Returns:
        The backend, and why it is this one.

    Raises:
        UsageError: there is no backend of this name.
        BackendUnavailableError: none of the candidates is on this machine.
        BundleCorruptError: the engine cannot read the graph.
    """
    choice = choose(backend)
    refusals = []
    for name in choice.candidates:
        try:
            opened = _constructor(name)(bundle, threads=threads, keep_optimised=keep_optimised)
        except BackendUnavailableError as error:
            if len(choice.candidates) == 1:
                raise
            refusals.append(f"{name} is not available: {error}")
            continue
        return opened, "; ".join([f"{choice.reason}; {name} runs {opened.graph} on {opened.provider}", *refusals])
    message = "no backend is available on this machine: " + "; ".join(refusals)
    raise BackendUnavailableError(message)


def _constructor(name: str) -> Callable[..., Backend]:
    module, _, attribute = BACKENDS[name].partition(":")
    return cast("Callable[..., Backend]", getattr(importlib.import_module(module), attribute))
