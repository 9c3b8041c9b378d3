"""From a bundle to a plan that TensorRT for RTX compiled ahead of time, for GPUs that need not be here.

What can be checked without a GPU is checked: the edges of the engine, the types of its products and the fusion of its
attention, off the compiler's own list of layers. How the engine answers is not known before a GPU has run it.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from calipso_runtime.bundle import Bundle
from calipso_runtime.engines import checks, layer_lists, layers, plans
from calipso_runtime.engines.compiler_process import Compiled, Report, compile_plan
from calipso_runtime.engines.compiler_worker import LOG_FILE
from calipso_runtime.engines.families import NAMES, TENSORRT_RTX, Capability, capabilities_of
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.engines.plans import Machine, PlanRecord
from calipso_runtime.engines.workplace import Finished, opened, work_folder
from calipso_runtime.errors import UsageError
from calipso_runtime.graph_file import seal_of

_DEFAULT_LEVEL = BuildOptions().optimisation_level
# Options that have no effect there, or fail without a GPU: whether one is set, and why it is refused.
_REFUSED: Mapping[str, tuple[Callable[[BuildOptions], bool], str]] = {
    "--level": (
        lambda options: options.optimisation_level != _DEFAULT_LEVEL,
        "it has no effect, for the kernels are chosen on the GPU, when the engine is loaded",
    ),
    "--version-compatible": (
        lambda options: options.version_compatible,
        "its plans run on the version that wrote them and on no other",
    ),
    "--hardware-compatible": (
        lambda options: options.hardware_compatible,
        "name the GPUs with --capability instead, such as --capability sm86,sm89",
    ),
    "--strip-weights": (lambda options: options.strip_weights, "it fails without a GPU"),
    "--dla": (lambda options: options.dla_core is not None, "it runs on no Jetson: use --engine tensorrt there"),
}


def compile_ahead(
    path: Path,
    options: BuildOptions,
    *,
    capability: str | None = None,
    force: bool = False,
    log: TextIO | None = None,
    report: Report,
) -> Finished:
    """Compile an engine for several kinds of GPU, check it as far as that goes without one, and put it into the bundle.

    Args:
        path: the bundle, or a bare `.onnx` that Calipso exported.
        options: of the build.
        capability: compute capabilities to compile for, such as "sm86,sm89,sm120"; None takes all that the precision
            of the bundle runs on.
        force: publish an engine that failed its checks, marked so.
        log: gets every line of the compiler's log when the build is over, however it ended.
        report: called with the phase, steps done and all steps.

    Raises:
        UsageError: an option or a compute capability is not for this compiler.
        BundleError: the bundle cannot be used.
        BackendUnavailableError: TensorRT for RTX is not installed.
        EngineBuildError: the compiler refuses, crashed or was killed; what was built failed its checks; another process
            builds here.
        KeyboardInterrupt: Ctrl-C; nothing is left.
    """
    refuse_options(options)
    bundle, manifest = opened(path)
    capabilities = capabilities_of(capability, manifest.precision)
    folder = plans.engines_folder(bundle)
    with work_folder(folder) as work:
        start = time.perf_counter()
        try:
            compiled = compile_plan(bundle.model_path, options, capabilities, work, report)
        finally:
            _copy_log(work / LOG_FILE, log)
        seconds = time.perf_counter() - start
        made_of = layers.report(layer_lists.read_listing(compiled.listing) if compiled.listing else ())
        found = checks.check_compiled(compiled.inputs, compiled.outputs, manifest, made_of)
        if not force:
            checks.refuse_failed(found, bundle)
        record = _record(
            bundle,
            compiled,
            options=options,
            compiled_for=capabilities,
            found=found,
            made_of=made_of,
            seconds=seconds,
        )
        plan = plans.write_plan(folder, compiled.plan.read_bytes(), record)
    return Finished(plan=plan, checks=found, warnings=compiled.warnings)


def refuse_options(options: BuildOptions) -> None:
    """Refuse options that are not for this compiler.

    Raises:
        UsageError: one is set.
    """
    for flag, (is_set, why) in _REFUSED.items():
        if is_set(options):
            refuse(flag, why)


def refuse(flag: str, why: str) -> None:
    """Refuse an option that is not for this compiler.

    Raises:
        UsageError: always.
    """
    message = f"{flag} is not for {NAMES[TENSORRT_RTX]}: {why}"
    raise UsageError(message)


def _record(
    bundle: Bundle,
    compiled: Compiled,
    *,
    options: BuildOptions,
    compiled_for: tuple[Capability, ...],
    found: checks.Checks,
    made_of: layers.LayerReport,
    seconds: float,
) -> PlanRecord:
    machine = Machine(gpu="", capability=None, tensorrt=compiled.version, cuda_driver="", engine=TENSORRT_RTX)
    sides = (("input", compiled.inputs), ("output", compiled.outputs))
    return PlanRecord(
        graph=seal_of(bundle.model_path),
        machine=machine,
        compiled_for=compiled_for,
        options=options,
        tensors=[{"mode": mode, **dataclasses.asdict(each)} for mode, infos in sides for each in infos],
        layers=made_of.as_json(),
        checks=found.as_json(),
        builds=[{"seconds": seconds, "kept": True, "latency_ms": {}, **found.as_json()}],
        plan={},
    )


def _copy_log(path: Path, log: TextIO | None) -> None:
    """A log that is missing, or a disk that is full, is no reason to hide how the build ended."""
    if log is None:
        return
    with contextlib.suppress(OSError), path.open(encoding="utf-8") as stream:
        shutil.copyfileobj(stream, log)
