"""TensorRT's log, as an object that TensorRT calls."""

from collections.abc import Callable
from typing import TextIO, TypeVar

import tensorrt as trt

from calipso_runtime import devices
from calipso_runtime.backends.tensorrt import version
from calipso_runtime.backends.tensorrt_common.log import LogLines
from calipso_runtime.errors import BackendUnavailableError

T = TypeVar("T")


class Log(LogLines, trt.ILogger):  # type: ignore[misc] # without tensorrt installed its classes are unknown
    """See `LogLines`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        trt.ILogger.__init__(self)
        LogLines.__init__(self, stream)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """What TensorRT calls."""
        self.keep(severity.name, msg)


def started(make: Callable[[], T], log: Log) -> T:
    """Make a builder or a runtime: the first thing that fails where driver and TensorRT do not fit.

    Raises:
        BackendUnavailableError: TensorRT does not start.
    """
    try:
        return make()
    except TypeError as error:
        # What the bindings make of a null pointer.
        driver = devices.cuda_driver().version
        message = (
            f"TensorRT {version()} does not start on a driver for CUDA {driver}: {log.take_errors()}. Upgrade the "
            "driver, or install the TensorRT that goes with it, and build again: calipso build"
        )
        raise BackendUnavailableError(message) from error
