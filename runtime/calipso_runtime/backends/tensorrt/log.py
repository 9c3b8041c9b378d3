"""TensorRT's log, as an object that TensorRT calls, and TensorRT as the shared code is given it."""

from typing import TextIO

import tensorrt as trt

from calipso_runtime.backends.tensorrt_common.library import Library
from calipso_runtime.backends.tensorrt_common.log import LogLines
from calipso_runtime.engines.families import TENSORRT


class Log(LogLines, trt.ILogger):  # type: ignore[misc] # without tensorrt installed its classes are unknown
    """See `LogLines`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        trt.ILogger.__init__(self)
        LogLines.__init__(self, stream)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """What TensorRT calls."""
        self.keep(severity.name, msg)


LIBRARY = Library(trt=trt, engine=TENSORRT, new_log=Log)
