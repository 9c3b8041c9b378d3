"""The bundle itself, through the runtime's public API, on one of its backends."""

import importlib
import warnings
from collections.abc import Sequence

import calipso_runtime
from calipso_bench.contenders import BUNDLE_PREFIX, ContenderUnavailable, Float32, Source
from calipso_runtime.backends import ALL_BACKENDS
from calipso_runtime.errors import BackendUnavailableError, CalipsoWarning


def import_backend(backend: str) -> None:
    """Import a backend's engine.

    Raises:
        ContenderUnavailable: it is not installed.
    """
    try:
        importlib.import_module(ALL_BACKENDS[backend].partition(":")[0])
    except BackendUnavailableError as error:
        raise ContenderUnavailable(str(error)) from error


class BundleContender:
    """`calipso_runtime.load(bundle, backend=...)`."""

    def __init__(self, subject: Source, *, name: str, threads: int | None) -> None:
        backend = name.removeprefix(BUNDLE_PREFIX)
        try:
            with warnings.catch_warnings():
                # A bundle that failed its gate warns on load; here it is verified again, and said so.
                warnings.simplefilter("ignore", CalipsoWarning)
                self._classifier = calipso_runtime.load(subject.bundle, backend=backend, threads=threads)
        except BackendUnavailableError as error:
            raise ContenderUnavailable(str(error)) from error
        precision = self._classifier.manifest.precision
        # "ort was asked for; ort runs on CPUExecutionProvider": the first part tells nothing here.
        _, _, runs = self._classifier.backend_reason.partition("; ")
        self.name = name
        self.about = f"calipso {calipso_runtime.__version__}, {runs}, {precision}"
        provider = self._classifier.provider.lower()
        self.device = "cuda" if "cuda" in provider or "tensorrt" in provider else "cpu"
        self.exact = precision == "fp32"
        self.weights_bytes = subject.file_bytes

    def encode(self, images: Float32) -> Float32:
        """See `Contender.encode`."""
        return self._classifier.embed(images, batch=len(images))

    def classify(self, images: Float32) -> Float32:
        """See `Contender.classify`."""
        return self._classifier.logits(images, batch=len(images))

    def answer(self, pictures: Sequence[bytes], top: int) -> list[list[int]]:
        """See `Contender.answer`."""
        predictions = self._classifier.classify(list(pictures), top=top, batch=len(pictures))
        return [[score.index for score in prediction] for prediction in predictions]

    def device_ms(self) -> float | None:
        """The runtime keeps no device clock."""
        return None

    def close(self) -> None:
        """See `Contender.close`."""
        self._classifier.close()
