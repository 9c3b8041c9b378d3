"""Contenders behind one protocol: each in its own file, which alone imports its engine.

A new contender is one file and one line in `CONTENDERS`. The bundle itself is one contender per
backend of the runtime, named `bundle/<backend>`.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import BACKENDS
from calipso_runtime.errors import CalipsoError
from calipso_runtime.manifest import Preprocess

if TYPE_CHECKING:
    from calipso_bench.contenders.eager_module import EagerModel

Float32 = npt.NDArray[np.float32]

# The contender that the others are held against, and that ratios are of.
REFERENCE = "eager"
BUNDLE_PREFIX = "bundle/"
_BUNDLE = "calipso_bench.contenders.bundle:BundleContender"
# Name on the command line: module and class. Nothing of it is imported before it is used.
CONTENDERS: Mapping[str, str] = {
    "eager": "calipso_bench.contenders.eager:Eager",
    "eager-bf16": "calipso_bench.contenders.eager:EagerBf16",
    "eager-fp16": "calipso_bench.contenders.eager:EagerFp16",
    "compile": "calipso_bench.contenders.compiled:Compiled",
    "compile-fp16": "calipso_bench.contenders.compiled:CompiledFp16",
    "ort-plain": "calipso_bench.contenders.ort_plain:OrtPlain",
    "openvino": "calipso_bench.contenders.openvino_plain:OpenVinoPlain",
}


class ContenderUnavailable(CalipsoError):  # noqa: N818 - a state of affairs that the table shows, not a failure
    """A contender cannot run here: a package, a device or the weights are missing."""


class Contender(Protocol):
    """One way to run the same classifier.

    All methods take and return numpy, and return when the work is done, on a device too.

    Attributes:
        name: as in `CONTENDERS`, or "bundle/<backend>".
        about: engine, version, device and precision, in words.
        device: "cpu" or "cuda": the measured peak of the CPU is no roof for the other.
        exact: whether it computes in fp32, and so has to answer like eager.
        weights_bytes: what the weights that it loads take, in its files or in memory.
    """

    name: str
    about: str
    device: str
    exact: bool
    weights_bytes: int

    def encode(self, images: Float32) -> Float32:
        """The encoder alone: float32 [B,3,H,W], normalised -> L2-normalised features float32 [B,D]."""

    def classify(self, images: Float32) -> Float32:
        """The encoder and the heads: float32 [B,3,H,W], normalised -> logits float32 [B,K]."""

    def answer(self, pictures: Sequence[bytes], top: int) -> list[list[int]]:
        """End to end: encoded pictures -> the `top` best class indices of each, best first."""

    def device_ms(self) -> float | None:
        """Time on the device during the last call where the engine can tell, else None."""

    def close(self) -> None:
        """Give the memory back."""


class Source(Protocol):
    """What a contender is made of: `subject.Subject`, or in a process of its own the files of one.

    Attributes:
        bundle: the bundle's directory, or a bare `.onnx`.
        preprocess: how its pictures become the input.
        file_bytes: of its graphs and weights.
    """

    bundle: Path
    preprocess: Preprocess
    file_bytes: int

    def eager(self) -> "EagerModel":
        """The eager model. Raises ContenderUnavailable."""

    def plain_onnx(self) -> Path:
        """The naive export of it. Raises ContenderUnavailable."""


class _Constructor(Protocol):
    def __call__(self, subject: Source, *, name: str, threads: int | None) -> Contender: ...


def names(against: Sequence[str], backends: Sequence[str] = tuple(BACKENDS)) -> tuple[str, ...]:
    """The rivals asked for, then the bundle on these backends of the runtime."""
    return (*against, *(f"{BUNDLE_PREFIX}{backend}" for backend in backends))


def first_line(error: Exception) -> str:
    """Of an engine's message, which may go on for pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def is_bundle(name: str) -> bool:
    """Whether it is the bundle itself, on some backend."""
    return name.startswith(BUNDLE_PREFIX)


def import_contender(name: str) -> _Constructor:
    """Import what a contender is made of, its engine included.

    Raises:
        ContenderUnavailable: a package is missing.
    """
    module, _, attribute = (_BUNDLE if is_bundle(name) else CONTENDERS[name]).partition(":")
    loaded = importlib.import_module(module)
    if is_bundle(name):
        loaded.import_backend(name.removeprefix(BUNDLE_PREFIX))
    constructor: _Constructor = getattr(loaded, attribute)
    return constructor


def connect(name: str, subject: Source, *, threads: int | None) -> Contender:
    """Make a contender ready to be called.

    Raises:
        ContenderUnavailable: it cannot run here, and why.
        CalipsoError: the bundle itself cannot be loaded.
    """
    return import_contender(name)(subject, name=name, threads=threads)
