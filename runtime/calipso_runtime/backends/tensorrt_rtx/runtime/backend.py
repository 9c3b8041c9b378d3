"""The backend: a plan of TensorRT for RTX."""

from calipso_runtime.backends.tensorrt_common.backend import PlanBackend
from calipso_runtime.backends.tensorrt_rtx.runtime.engine import LIBRARY, RtxEngine
from calipso_runtime.backends.tensorrt_rtx.runtime.kernel_file import kernel_file
from calipso_runtime.bundle import Bundle
from calipso_runtime.engines.families import TENSORRT_RTX
from calipso_runtime.engines.plans import Machine, Plan


class RtxBackend(PlanBackend):
    """See `PlanBackend`."""

    name = TENSORRT_RTX
    library = LIBRARY

    def _open_engine(self, plan: Plan, bundle: Bundle, machine: Machine, *, keep_optimised: bool) -> RtxEngine:
        del bundle
        kernels = kernel_file(plan.record.graph, machine) if keep_optimised else None
        return RtxEngine(plan.path, plan.record.options, kernels)
