"""Plans of the stand-in for TensorRT for RTX, as `calipso build --engine tensorrt-rtx` would have left them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu import Gpu

from calipso_runtime import bundle
from calipso_runtime.engines import plans
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.engines.plans import Machine, Plan, PlanRecord
from calipso_runtime.graph_file import seal_of

# Of the stand-in's GPU.
CAPABILITY = (9, 0)
PASSED = {"parity": "passed", "failures": [], "warnings": [], "worst": None}
UNVERIFIED = {**PASSED, "parity": "unverified"}
PROFILES = (BatchRange(least=1, best=1, most=1), BatchRange(least=2, best=8, most=32))


def write_rtx_plan(
    gpu: Gpu,
    path: Path,
    *,
    profiles: Sequence[BatchRange] = PROFILES,
    capabilities: Sequence[tuple[int, int]] = (CAPABILITY,),
    checks: Mapping[str, object] = PASSED,
    **machine: str,
) -> Plan:
    """Write a plan of a bundle of the tiny graph into it."""
    opened = bundle.open_bundle(path)
    shapes = [[[size, 3, 16, 16] for size in (each.least, each.best, each.most)] for each in profiles]
    record = PlanRecord(
        graph=seal_of(opened.model_path),
        machine=Machine(
            **{
                "gpu": "",
                "tensorrt": gpu.tensorrt.__version__,
                "cuda_driver": "",
                "engine": "tensorrt-rtx",
                **machine,
            },
            capability=None,
        ),
        compiled_for=tuple(capabilities),
        options=BuildOptions(profiles=tuple(profiles)),
        tensors=(),
        layers={},
        checks=checks,
        builds=(),
        plan={},
    )
    content = gpu.tensorrt.plan_of(opened.model_path.read_bytes(), shapes)
    return plans.write_plan(plans.engines_folder(opened), content, record)


def remove_plans(path: Path) -> None:
    """Leave a bundle without engines."""
    shutil.rmtree(path / "engines", ignore_errors=True)
