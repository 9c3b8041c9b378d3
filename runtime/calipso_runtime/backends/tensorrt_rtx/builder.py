"""Compiles a plan ahead of time, for GPUs that need not be here. A defect of the compiler ends the whole process."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calipso_runtime.backends import TensorInfo
from calipso_runtime.backends.tensorrt_common import network as networks
from calipso_runtime.backends.tensorrt_common.monitor import Report
from calipso_runtime.backends.tensorrt_rtx.bindings import trt, version
from calipso_runtime.backends.tensorrt_rtx.callbacks import Log, Monitor
from calipso_runtime.backends.tensorrt_rtx.turing import TURING, products_as_convolutions
from calipso_runtime.engines.families import NAMES, TENSORRT_RTX, Capability, sm
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.errors import BackendUnavailableError, EngineBuildError

if TYPE_CHECKING:
    import tensorrt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to compile.

    Attributes:
        model_path: the graph, with its external data beside it.
        options: see there.
        capabilities: compute capabilities to compile for.
    """

    model_path: Path
    options: BuildOptions
    capabilities: Sequence[Capability]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """What a build gave.

    Attributes:
        plan: the serialised engine.
        inputs: of the network.
        outputs: of the network.
    """

    plan: "tensorrt.IHostMemory"
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def build_plan(request: Request, log: Log, report: Report) -> Built:
    """Compile an engine and serialise it.

    Args:
        request: what to compile.
        log: gets the compiler's messages, and with them the list of layers.
        report: called with the phase, steps done and all steps, from the compiler's threads.

    Raises:
        BackendUnavailableError: the compiler does not start.
        EngineBuildError: it refuses the graph, an option or a compute capability.
    """
    monitor = Monitor(report)
    job = networks.Job(
        compiler=f"{NAMES[TENSORRT_RTX]} {version()}",
        model_path=request.model_path,
        options=request.options,
        log=log,
    )
    builder = started(job.compiler, log)
    # The parser holds weights that the network refers to: it lives as long as the build.
    network, parser = networks.parse(trt, builder, job)
    kernels = products_as_convolutions(network) if TURING in request.capabilities else []
    config = builder.create_builder_config()
    networks.configure(trt, config, request.options)
    config.progress_monitor = monitor
    set_capabilities(config, request.capabilities, job.compiler)
    networks.add_profiles(builder, network, config, job)
    plan = builder.build_serialized_network(network, config)
    del parser, kernels
    if monitor.error is not None:
        raise monitor.error
    if plan is None:
        names = ", ".join(map(sm, request.capabilities))
        message = f"{job.compiler} could not build an engine from {job.model_path} for {names}: {log.take_errors()}"
        raise EngineBuildError(message)
    inputs, outputs = networks.edges(network)
    return Built(plan=plan, inputs=inputs, outputs=outputs)


def started(compiler: str, log: Log) -> "tensorrt.Builder":
    """Start the builder.

    Raises:
        BackendUnavailableError: it does not start.
    """
    try:
        builder: tensorrt.Builder = trt.Builder(log)
    except TypeError as error:
        # What the bindings make of a null pointer.
        message = f"{compiler} does not start: {log.take_errors()}. Install it again: pip install 'calipso[rtx]'"
        raise BackendUnavailableError(message) from error
    return builder


def set_capabilities(config: "tensorrt.IBuilderConfig", capabilities: Sequence[Capability], compiler: str) -> None:
    """Name every compute capability: left to itself the compiler takes some on which fp8 does not run.

    Raises:
        EngineBuildError: the compiler is too old for one of them.
    """
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(capabilities)
    for place, capability in enumerate(capabilities):
        name = sm(capability)
        if name.upper() not in known:
            has = ", ".join(each.lower() for each in known if each.startswith("SM"))
            message = f"{compiler} does not compile for {name}, only for {has}: leave it out of --capability"
            raise EngineBuildError(message)
        config.set_compute_capability(known[name.upper()], place)
