"""The log and the progress of a build, as objects that TensorRT for RTX calls."""

from typing import Any, TextIO

from calipso_runtime.backends.tensorrt_common.log import LogLines
from calipso_runtime.backends.tensorrt_common.monitor import Phases, Report
from calipso_runtime.backends.tensorrt_rtx.bindings import trt
from calipso_runtime.engines.families import NAMES, TENSORRT_RTX
from calipso_runtime.engines.layer_lists import LISTING_START


class Log(LogLines, trt.ILogger):  # type: ignore[misc, name-defined] # the module is found at run time
    """See `LogLines`.

    Attributes:
        listing: the message that lists the layers of the engine; empty until it is built.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        trt.ILogger.__init__(self)
        LogLines.__init__(self, stream, compiler=NAMES[TENSORRT_RTX])
        self.listing = ""

    def log(self, severity: Any, msg: str) -> None:
        """What TensorRT for RTX calls."""
        if msg.startswith(LISTING_START):
            self.listing = msg
        self.keep(severity.name, msg)


class Monitor(Phases, trt.IProgressMonitor):  # type: ignore[misc, name-defined] # the module is found at run time
    """See `Phases`."""

    def __init__(self, report: Report) -> None:
        trt.IProgressMonitor.__init__(self)
        Phases.__init__(self, report)

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """What TensorRT for RTX calls when a phase begins."""
        self.begin(phase_name, parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """What TensorRT for RTX calls after a step; False ends the build."""
        return self.complete(phase_name, step)

    def phase_finish(self, phase_name: str) -> None:
        """What TensorRT for RTX calls when a phase is over, or was ended."""
        self.finish(phase_name)
