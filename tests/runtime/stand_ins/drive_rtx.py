"""Drives our code for TensorRT for RTX through its real bindings, on stand-ins of its libraries and of libcuda.

    drive_rtx.py build FOLDER     compiles an engine into each bundle of the folder, in the way that it is named after
    drive_rtx.py run FOLDER       runs the engines of another process on images.npz: BUNDLE/answers.npz

Both print what they saw as JSON.
"""

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorrt_rtx
from stand_ins import fake_tensorrt, twins

from calipso_runtime.backends import GpuOptions
from calipso_runtime.backends.tensorrt_rtx.bindings import version
from calipso_runtime.backends.tensorrt_rtx.builder import Built, Request, build_plan
from calipso_runtime.backends.tensorrt_rtx.callbacks import Log
from calipso_runtime.backends.tensorrt_rtx.runtime.backend import RtxBackend
from calipso_runtime.bundle import open_bundle
from calipso_runtime.engines import plans
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.engines.plans import Machine, PlanRecord
from calipso_runtime.errors import CalipsoError
from calipso_runtime.graph_file import seal_of

WAYS = {
    "plain": BuildOptions(profiles=(BatchRange.parse("1,8,32"),)),
    "large": BuildOptions(workspace_mib=64, tf32=True, weight_streaming=True),
}
OUTPUTS = ("logits", "embedding")
# Those that every release compiles for.
CAPABILITIES = [(8, 9), (12, 0)]


def compiled(path: Path, options: BuildOptions, report: Callable[[str, int, int], None]) -> tuple[Built, Log]:
    """Compile in this process: the one of its own that `calipso build` starts would have no stand-ins."""
    log = Log()
    request = Request(model_path=open_bundle(path).model_path, options=options, capabilities=CAPABILITIES)
    return build_plan(request, log, report), log


def build_all(folder: Path) -> dict[str, object]:
    """An engine in each way; and what our code says when the compiler refuses."""
    seen: dict[str, object] = {}
    for name, options in WAYS.items():
        phases: list[str] = []
        built, log = compiled(folder / name, options, lambda phase, *_, phases=phases: phases.append(phase))
        seen[name] = {
            "flags": sorted(fake_tensorrt.faults.flags),
            "phases": list(dict.fromkeys(phases)),
            "warnings": log.warnings,
            "tensors": [(info.name, info.shape, info.dtype) for info in (*built.inputs, *built.outputs)],
        }
        bundle = open_bundle(folder / name)
        record = PlanRecord(
            graph=seal_of(bundle.model_path),
            machine=Machine(gpu="", capability=None, tensorrt=version(), cuda_driver="", engine="tensorrt-rtx"),
            # The stand-in's GPU is one that no release compiles for.
            compiled_for=((9, 0),),
            options=options,
            tensors=(),
            layers={},
            checks={"parity": "passed"},
            builds=(),
            plan={},
        )
        plans.write_plan(plans.engines_folder(bundle), bytes(built.plan), record)
    seen["stopped"] = failure(lambda: compiled(folder / "plain", WAYS["plain"], stop))
    for call in ("parse", "build"):
        fake_tensorrt.faults.failing = {call}
        seen[call] = failure(lambda: compiled(folder / "plain", WAYS["plain"], lambda *_: None))
    fake_tensorrt.faults.failing = {"deserialize"}
    seen["deserialize"] = failure(lambda: RtxBackend(open_bundle(folder / "plain")))
    return seen


def stop(*_: object) -> None:
    """A report that ends a build."""
    message = "stopped by its report"
    raise CalipsoError(message)


def run_all(folder: Path) -> dict[str, object]:
    """What the engines answer, and for which batches kernels were compiled when they ran first, and again."""
    seen: dict[str, object] = {}
    images = np.load(folder / "images.npz")
    for name in WAYS:
        for turn in ("first", "again"):
            fake_tensorrt.faults.compiled.clear()
            backend = RtxBackend(open_bundle(folder / name), gpu=GpuOptions(lanes=2))
            answers = {key: backend.run(images[key], OUTPUTS) for key in images}
            np.savez(folder / name / "answers.npz", **{key: answer["logits"] for key, answer in answers.items()})
            tensors = [(info.name, info.shape, info.dtype) for info in (*backend.inputs, *backend.outputs)]
            seen[f"{name} {turn}"] = {"tensors": tensors, "compiled": list(fake_tensorrt.faults.compiled)}
            backend.close()
    return seen


def failure(call: Callable[[], object]) -> str:
    """The error that a call ends with."""
    try:
        call()
    except CalipsoError as error:
        return f"{type(error).__name__}: {error}"
    return "it worked"


if __name__ == "__main__":
    twins.install(ctypes.CDLL("libcuda.so.1"))
    fake_tensorrt.become_rtx(tensorrt_rtx.__version__)
    json.dump({"build": build_all, "run": run_all}[sys.argv[1]](Path(sys.argv[2])), sys.stdout)
