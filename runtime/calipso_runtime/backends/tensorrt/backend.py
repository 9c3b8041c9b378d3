"""The backend: a plan of TensorRT."""

from calipso_runtime.backends.tensorrt.engine import TensorRtEngine
from calipso_runtime.backends.tensorrt.log import LIBRARY
from calipso_runtime.backends.tensorrt_common.backend import PlanBackend
from calipso_runtime.bundle import Bundle
from calipso_runtime.cuda.device import Device
from calipso_runtime.engines.plans import Machine, Plan


def this_machine(device: Device) -> Machine:
    """Return what a plan has to fit here."""
    return LIBRARY.machine(device)


class TensorRtBackend(PlanBackend):
    """See `PlanBackend`. `calipso build` keeps what was optimised in the plan."""

    name = "tensorrt"
    library = LIBRARY

    def _open_engine(self, plan: Plan, bundle: Bundle, machine: Machine, *, keep_optimised: bool) -> TensorRtEngine:
        del machine, keep_optimised
        record = plan.record
        return TensorRtEngine(plan.path, record.options, model_path=bundle.model_path, built_by=record.machine.tensorrt)
