"""Runs engines of TensorRT for RTX. The driver is asked before the library is imported: without one nothing runs."""

from calipso_runtime import devices
from calipso_runtime.engines.families import TENSORRT_RTX
from calipso_runtime.errors import BackendUnavailableError

if (_problem := devices.cuda_driver().problem) is not None:
    _MESSAGE = f"{TENSORRT_RTX} needs a CUDA device: {_problem}"
    raise BackendUnavailableError(_MESSAGE)
