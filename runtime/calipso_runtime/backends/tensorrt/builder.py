"""Builds a plan: parses the graph into a strongly typed network, and lets TensorRT choose its kernels."""

import dataclasses
import threading
import traceback
from pathlib import Path

import tensorrt as trt

from calipso_runtime import devices
from calipso_runtime.backends.tensorrt import version
from calipso_runtime.backends.tensorrt.log import LIBRARY, Log
from calipso_runtime.backends.tensorrt.monitor import Monitor
from calipso_runtime.backends.tensorrt_common import network as networks
from calipso_runtime.backends.tensorrt_common.engine import OUT_OF_MEMORY
from calipso_runtime.backends.tensorrt_common.monitor import Report
from calipso_runtime.cuda.device import Device
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.errors import EngineBuildError

_MIB = 1 << 20
# How often a build in its own thread is looked after: an interrupt is noticed by then.
_POLL_S = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to build.

    Attributes:
        model_path: the graph, with its external data beside it.
        options: see there.
        device: to build for.
        timing_cache: of an earlier build, or nothing.
        log: gets TensorRT's messages.
    """

    model_path: Path
    options: BuildOptions
    device: Device
    timing_cache: bytes
    log: Log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """What a build gave.

    Attributes:
        plan: the serialised engine.
        timing_cache: what TensorRT measured, to be given to the next build on this device.
        warnings: of TensorRT.
    """

    plan: bytes
    timing_cache: bytes
    warnings: tuple[str, ...]


class Interrupted(KeyboardInterrupt):
    """A build was interrupted; what it had measured until then is kept.

    Attributes:
        timing_cache: see `Built`.
    """

    def __init__(self, timing_cache: bytes) -> None:
        super().__init__()
        self.timing_cache = timing_cache


def build_plan(request: Request, report: Report) -> Built:
    """Build an engine for a device and serialise it.

    Ctrl-C ends it at TensorRT's next step: the build runs in a thread of its own, so that a signal reaches
    Python while TensorRT works.

    Args:
        request: what to build.
        report: told the phase, steps done and all steps, from TensorRT's threads.

    Raises:
        EngineBuildError: TensorRT refuses the graph or an option, or finds no kernels in the memory there is.
        Interrupted: Ctrl-C.
    """
    work = _Work(request, Monitor(report))
    thread = threading.Thread(target=work.run, name="calipso-build", daemon=True)
    thread.start()
    if _was_interrupted(work):
        raise Interrupted(work.timing_cache)
    if (error := work.monitor.error or work.error) is not None:
        raise error
    if work.plan is None:
        raise EngineBuildError(_failure(request))
    return Built(plan=work.plan, timing_cache=work.timing_cache, warnings=request.log.warnings)


def _failure(request: Request) -> str:
    """What TensorRT's log says, and what to do where memory did not suffice."""
    errors = request.log.take_errors()
    message = f"TensorRT {version()} could not build an engine from {request.model_path}: {errors}"
    if not OUT_OF_MEMORY.search(errors):
        return message
    device = request.device
    with device.current():
        free_mib, all_mib = device.free_bytes() // _MIB, device.memory_bytes // _MIB
    holders = ", ".join(devices.largest_processes()) or "processes that cannot be told"
    return (
        f"{message}. Free on {device.name} are {free_mib} of {all_mib} MiB; most memory of the host is held by "
        f"{holders}. Close what is not needed, or use less: --workspace 256, smaller --batch, --level 2, "
        "--weight-streaming"
    )


def _was_interrupted(work: "_Work") -> bool:
    """Wait for the build, which ends soon after it was cancelled.

    Not by joining its thread: an interrupted join takes a thread for ended that is not (up to Python 3.12).
    """
    try:
        while not work.is_over.wait(_POLL_S):
            pass
    except KeyboardInterrupt:
        work.monitor.cancel()
        return _was_interrupted(work) or True
    return False


class _Work:
    """One build, in the thread that it runs in."""

    def __init__(self, request: Request, monitor: Monitor) -> None:
        self.monitor = monitor
        self.is_over = threading.Event()
        self.plan: bytes | None = None
        self.error: BaseException | None = None
        self.timing_cache = request.timing_cache
        self._request, self._log = request, request.log

    def run(self) -> None:
        try:
            with self._request.device.current():
                self._build_or_let_go()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self.error = error
        finally:
            self.is_over.set()

    def _build_or_let_go(self) -> None:
        try:
            self._build()
        except BaseException as error:
            # What TensorRT gave goes now, in this context, and not whenever the error is forgotten.
            traceback.clear_frames(error.__traceback__)
            raise

    def _build(self) -> None:
        request = self._request
        job = networks.Job(
            compiler=f"TensorRT {version()}",
            model_path=request.model_path,
            options=request.options,
            log=self._log,
        )
        builder = LIBRARY.started(lambda: trt.Builder(self._log), self._log)
        # The parser holds weights that the network refers to: it lives as long as the build.
        network, parser = networks.parse(trt, builder, job)
        config = builder.create_builder_config()
        self._configure(builder, config)
        networks.add_profiles(builder, network, config, job)
        cache = self._timing_cache(config)
        plan = builder.build_serialized_network(network, config)
        del parser
        if cache is not None:
            self.timing_cache = bytes(cache.serialize())
        if plan is not None and not self.monitor.is_cancelled:
            self.plan = bytes(plan)

    def _timing_cache(self, config: trt.IBuilderConfig) -> trt.ITimingCache | None:
        """With what was measured before; empty where that is damaged, or was measured on another device."""
        for content in (self.timing_cache, b""):
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
                return cache
        return None

    def _configure(self, builder: trt.Builder, config: trt.IBuilderConfig) -> None:
        options = self._request.options
        networks.configure(trt, config, options)
        config.progress_monitor = self.monitor
        config.builder_optimization_level = options.optimisation_level
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            # With it a plan would hold host code, and loading that would have to be allowed.
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.strip_weights:
            # The weights that come back are those of the same file: kernels may be chosen for them.
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        if options.dla_core is not None:
            self._use_dla(builder, config, options.dla_core)

    def _use_dla(self, builder: trt.Builder, config: trt.IBuilderConfig, core: int) -> None:
        if core >= builder.num_DLA_cores:
            message = f"DLA core {core} is not there: this device has {builder.num_DLA_cores}; build without --dla"
            raise EngineBuildError(message)
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
