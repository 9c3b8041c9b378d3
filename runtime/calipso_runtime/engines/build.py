"""From a bundle to a plan that was checked: builds, loads what it wrote, holds it to the bundle's gates, publishes.

A plan is checked as the file that it is, in a folder beside its place, and moved there only when it passed.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import GpuOptions
from calipso_runtime.bundle import Bundle
from calipso_runtime.caching import cache_folder
from calipso_runtime.engines import checks, layer_lists, layers, plans
from calipso_runtime.engines.checks import Checks
from calipso_runtime.engines.families import sm
from calipso_runtime.engines.layers import LayerReport
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.engines.plans import Machine, Plan, PlanRecord
from calipso_runtime.engines.workplace import Finished, opened, work_folder
from calipso_runtime.errors import BackendError, UsageError
from calipso_runtime.graph_file import seal_of
from calipso_runtime.manifest import Manifest
from calipso_runtime.parity import spread

if TYPE_CHECKING:
    from calipso_runtime.backends.tensorrt.backend import TensorRtBackend
    from calipso_runtime.cuda.device import Device

Report = Callable[[str, int, int], None]

# Times that every candidate is loaded and timed in turn, where there are several to choose from.
_ROUNDS = 3


@dataclasses.dataclass
class _Candidate:
    """One build, on disk and judged."""

    plan: Plan
    checks: Checks
    layers: LayerReport
    warnings: tuple[str, ...]
    seconds: float
    answers: npt.NDArray[np.float32]
    tensors: Sequence[Mapping[str, Any]]
    samples: dict[int, list[float]] = dataclasses.field(default_factory=dict)

    def median_ms(self, batch: int) -> float:
        return statistics.median(self.samples[batch])


def build(
    path: Path,
    options: BuildOptions,
    *,
    builds: int = 1,
    timing_cache: Path | None = None,
    force: bool = False,
    log: TextIO | None = None,
    report: Report,
) -> Finished:
    """Build an engine for this machine's GPU, check it and put it into the bundle.

    Args:
        path: the bundle, or a bare `.onnx` that Calipso exported.
        options: of the build.
        builds: build so many times, and keep the fastest that passes: TensorRT chooses kernels by timing them, and
            no two builds are the same. Each then begins without what an earlier one measured.
        timing_cache: file that keeps what TensorRT measured; in the cache folder, one per GPU and version, where None.
        force: publish an engine that failed its checks, marked so.
        log: gets every line of TensorRT's log.
        report: told the phase, steps done and all steps.

    Raises:
        UsageError: `builds` is below 1.
        BundleError: the bundle cannot be used.
        BackendUnavailableError: no driver, no device, or no TensorRT.
        EngineBuildError: TensorRT refuses; what was built failed its checks; another process builds here.
        KeyboardInterrupt: Ctrl-C, at TensorRT's next step; nothing is left but what it measured.
    """
    if builds < 1:
        message = f"builds is {builds}: expected at least 1"
        raise UsageError(message)
    bundle, manifest = opened(path)
    # The first thing that touches the driver: everything above fails without it just the same.
    from calipso_runtime.backends.tensorrt.backend import this_machine
    from calipso_runtime.cuda.device import Device

    device = Device()
    try:
        machine = this_machine(device)
        kept = timing_cache or _timing_cache_path(device, machine)
        folder = plans.engines_folder(bundle)
        with work_folder(folder) as work:
            job = _Job(bundle, manifest, options, machine, device, kept, log, report)
            candidates = [job.candidate(work / str(number), fresh=builds > 1) for number in range(builds)]
            best = job.best(candidates, force=force)
            return job.publish(best, candidates, folder)
    finally:
        device.free()


@dataclasses.dataclass
class _Job:
    bundle: Bundle
    manifest: Manifest
    options: BuildOptions
    machine: Machine
    device: "Device"
    timing_cache: Path
    log: TextIO | None
    report: Report

    def candidate(self, folder: Path, *, fresh: bool) -> _Candidate:
        """Build, write, load the file and check it."""
        from calipso_runtime.backends.tensorrt.builder import Interrupted, Request, build_plan
        from calipso_runtime.backends.tensorrt.log import Log

        known = b"" if fresh or not self.timing_cache.is_file() else self.timing_cache.read_bytes()
        request = Request(
            model_path=self.bundle.model_path,
            options=self.options,
            device=self.device,
            timing_cache=known,
            log=Log(self.log),
        )
        start = time.perf_counter()
        try:
            built = build_plan(request, self.report)
        except Interrupted as interrupted:
            self._keep_timing(interrupted.timing_cache)
            raise
        seconds = time.perf_counter() - start
        self._keep_timing(built.timing_cache)
        plan = plans.write_plan(folder, built.plan, self._record())
        with contextlib.closing(self._load(plan)) as engine:
            made_of = layers.report(_read_layers(engine))
            self.report("checking the engine", 0, 1)
            found = checks.check(engine, self.bundle, self.manifest, made_of, self.options)
            self.report("checking the engine", 1, 1)
            answers = self._answers(engine)
            sides = (("input", engine.inputs), ("output", engine.outputs))
            tensors = [{"mode": mode, **dataclasses.asdict(each)} for mode, infos in sides for each in infos]
        return _Candidate(
            plan=plan,
            checks=found,
            layers=made_of,
            warnings=built.warnings,
            seconds=seconds,
            answers=answers,
            tensors=tensors,
        )

    def best(self, candidates: Sequence[_Candidate], *, force: bool) -> _Candidate:
        """The fastest that passed, by the sum of its medians over the batches that the profiles are best at."""
        passed = [each for each in candidates if not each.checks.failures]
        if not passed and not force:
            checks.refuse_failed(candidates[0].checks, self.bundle)
        batches = [each.best for each in self.options.profiles]
        rounds = _ROUNDS if len(candidates) > 1 else 1
        # In turn: what the machine does besides falls on all of them.
        for done, (_, each) in enumerate(itertools.product(range(rounds), candidates), start=1):
            self.report("timing", done - 1, rounds * len(candidates))
            with contextlib.closing(self._load(each.plan)) as engine:
                for batch, samples in checks.latencies(engine, batches).items():
                    each.samples.setdefault(batch, []).extend(samples)
            self.report("timing", done, rounds * len(candidates))
        return min(passed or candidates, key=lambda each: sum(map(each.median_ms, batches)))

    def publish(self, best: _Candidate, candidates: Sequence[_Candidate], folder: Path) -> Finished:
        """Put the plan into its place, with everything that is known of it."""
        record = dataclasses.replace(
            self._record(),
            tensors=best.tensors,
            layers=best.layers.as_json(),
            checks={**best.checks.as_json(), "answers_between_builds": self._between(candidates)},
            builds=[
                {
                    "seconds": each.seconds,
                    "kept": each is best,
                    "latency_ms": {str(batch): samples for batch, samples in each.samples.items()},
                    **each.checks.as_json(),
                }
                for each in candidates
            ],
        )
        plan = plans.write_plan(folder, best.plan.path.read_bytes(), record)
        return Finished(plan=plan, checks=best.checks, warnings=best.warnings)

    def _record(self) -> PlanRecord:
        return PlanRecord(
            graph=seal_of(self.bundle.model_path),
            machine=self.machine,
            options=self.options,
            tensors=(),
            layers={},
            checks={},
            builds=(),
            plan={},
        )

    def _load(self, plan: Plan) -> "TensorRtBackend":
        from calipso_runtime.backends.tensorrt.backend import TensorRtBackend

        return TensorRtBackend(self.bundle, gpu=GpuOptions(plan=plan.record_path, lanes=1))

    def _answers(self, engine: "TensorRtBackend") -> npt.NDArray[np.float32]:
        """Logits on noise, to compare builds with each other; in the first profile's best batch."""
        (info,) = engine.inputs
        shape = (self.options.profiles[0].best, *(size or 1 for size in info.shape[1:]))
        rng = np.random.default_rng(0)
        if info.dtype == "uint8":
            image = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            image = rng.standard_normal(shape).astype(info.dtype)
        return engine.run(image, ("logits",))["logits"].astype(np.float32)

    def _between(self, candidates: Sequence[_Candidate]) -> float:
        """The largest difference of a logit between any two builds, relative to how far logits spread."""
        pairs = itertools.combinations((each.answers for each in candidates), 2)
        return max((float((np.abs(a - b).max(axis=1) / spread(a)).max()) for a, b in pairs), default=0.0)

    def _keep_timing(self, content: bytes) -> None:
        """What was measured is kept, whatever becomes of the engine; a cache that cannot be written is no error."""
        with contextlib.suppress(OSError):
            self.timing_cache.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.timing_cache.parent, suffix=".partial", delete=False) as stream:
                stream.write(content)
            Path(stream.name).replace(self.timing_cache)


def _read_layers(engine: "TensorRtBackend") -> tuple[layers.Layer, ...]:
    try:
        return layer_lists.read_layers(engine.layer_information())
    except ValueError as error:
        message = f"TensorRT's layer information cannot be read: {error}"
        raise BackendError(message) from error


def _timing_cache_path(device: "Device", machine: Machine) -> Path:
    digest = hashlib.sha256(machine.gpu.encode()).hexdigest()[:8]
    return cache_folder() / "tensorrt" / f"{sm(device.capability)}-{machine.tensorrt}-{digest}.timing"
