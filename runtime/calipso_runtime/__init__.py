"""Calipso's runtime: answers from an exported bundle with numpy and one engine, never torch.

    import calipso_runtime

    classifier = calipso_runtime.load("flowers.calipso")
    print(classifier.classify("tulip.jpg").label)

Importing this needs numpy alone. An engine is imported by `load`, Pillow by the first picture.
"""

from calipso_runtime.backends import GpuOptions
from calipso_runtime.classifier import Classifier
from calipso_runtime.embedder import Embedder
from calipso_runtime.errors import (
    BackendError,
    BackendUnavailableError,
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleSchemaError,
    CalipsoError,
    CalipsoWarning,
    DeviceLostError,
    DeviceMemoryError,
    EngineBuildError,
    ImageError,
    InputError,
    ModelError,
    ParityError,
    SignatureError,
    TeachingError,
    UsageError,
)
from calipso_runtime.loading import load, load_embedder
from calipso_runtime.prediction import Prediction, Score

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "BundleCorruptError",
    "BundleError",
    "BundleNotFoundError",
    "BundleSchemaError",
    "CalipsoError",
    "CalipsoWarning",
    "Classifier",
    "DeviceLostError",
    "DeviceMemoryError",
    "Embedder",
    "EngineBuildError",
    "GpuOptions",
    "ImageError",
    "InputError",
    "ModelError",
    "ParityError",
    "Prediction",
    "Score",
    "SignatureError",
    "TeachingError",
    "UsageError",
    "__version__",
    "load",
    "load_embedder",
]

# What `__version__` says where the package runs from its source tree, without being installed.
_NOT_INSTALLED = "0.0.0+not-installed"


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: importlib.metadata costs more than this whole package."""
    if name != "__version__":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import importlib.metadata

    try:
        return importlib.metadata.version("calipso")
    except importlib.metadata.PackageNotFoundError:
        return _NOT_INSTALLED
