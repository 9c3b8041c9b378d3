"""What a measurement was taken on: enough to judge it, nothing that names a machine or a person."""

import importlib.metadata
import os
import platform
from typing import Any

import psutil

from calipso_runtime.devices import cpu_count, cpu_name

_PACKAGES = ("calipso", "torch", "open_clip_torch", "onnx", "onnxruntime", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """CPU, memory, versions and thread settings, as JSON types."""
    return {
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
    }
