"""Progress of a build, as an object that TensorRT calls."""

import tensorrt as trt

from calipso_runtime.backends.tensorrt_common.monitor import Phases, Report


class Monitor(Phases, trt.IProgressMonitor):  # type: ignore[misc] # without tensorrt installed its classes are unknown
    """See `Phases`."""

    def __init__(self, report: Report) -> None:
        trt.IProgressMonitor.__init__(self)
        Phases.__init__(self, report)

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """What TensorRT calls when a phase begins."""
        self.begin(phase_name, parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """What TensorRT calls after a step; False ends the build."""
        return self.complete(phase_name, step)

    def phase_finish(self, phase_name: str) -> None:
        """What TensorRT calls when a phase is over, or was ended."""
        self.finish(phase_name)
