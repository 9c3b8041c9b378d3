"""The Python module of TensorRT for RTX. No other file imports it. Importing it needs no driver."""

import importlib
import importlib.util
from types import ModuleType

from calipso_runtime.engines.families import NAMES, TENSORRT_RTX
from calipso_runtime.errors import BackendUnavailableError

# The first is a package that only passes on the second, which comes alone with the wheels of one CUDA version.
_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")


def _imported() -> ModuleType:
    whole, bindings = _MODULES
    try:
        return importlib.import_module(whole if importlib.util.find_spec(whole) else bindings)
    except (ImportError, OSError) as error:
        message = f"{NAMES[TENSORRT_RTX]} cannot be imported ({error}): pip install 'calipso[rtx]'"
        raise BackendUnavailableError(message) from error


trt = _imported()


def version() -> str:
    """Return the version of TensorRT for RTX: "1.7.1.116"."""
    return str(trt.__version__)
