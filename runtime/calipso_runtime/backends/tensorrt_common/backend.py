"""The backend that both libraries share: one plan of a bundle on one GPU."""

import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import GpuOptions, TensorInfo
from calipso_runtime.backends.tensorrt_common.engine import Engine
from calipso_runtime.backends.tensorrt_common.lane import Lane
from calipso_runtime.backends.tensorrt_common.lanes import Lanes, Pending
from calipso_runtime.backends.tensorrt_common.library import Library
from calipso_runtime.bundle import Bundle
from calipso_runtime.cuda.device import Device
from calipso_runtime.engines.checks import UNVERIFIED
from calipso_runtime.engines.first_load import FirstLoad
from calipso_runtime.engines.plans import Machine, Plan, build_command, find_plan, read_plan, why_unfit
from calipso_runtime.errors import BackendError, BackendUnavailableError, CalipsoWarning, UsageError
from calipso_runtime.graph_file import METADATA_MANIFEST, embedded_manifest


class Parts:
    """A batch that was split: its parts under way, in order."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self._parts = parts

    def result(self) -> dict[str, npt.NDArray[np.floating]]:
        """Wait for all of them, and join the answers."""
        answers = [part.result() for part in self._parts]
        return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}


class PlanBackend(ABC):
    """One engine on one GPU; `run` and `submit` may be called from several threads at once.

    Each library has a subclass, which names the library and opens an engine of it.

    Args:
        bundle: whose hashes were checked.
        threads: not used: the GPU computes.
        keep_optimised: whether kernels that are compiled when an engine is loaded are kept in the cache folder.
        gpu: lanes, batches that are too large, CUDA graphs, which plan.

    Raises:
        BackendUnavailableError: no plan of the bundle runs here, or the one that does fails the bundle's gates; says
            how to build one.
        BundleCorruptError: a plan or its record is truncated or was edited.
        SignatureError: signatures are required, and the plan's record has none.
        DeviceMemoryError: the engine does not fit.
    """

    name: str
    library: Library

    @classmethod
    def why_unavailable(cls) -> str | None:
        """Why the library does not start here, or None; whether a bundle has an engine for it is another question."""
        return cls.library.why_unavailable()

    @abstractmethod
    def _open_engine(self, plan: Plan, bundle: Bundle, machine: Machine, *, keep_optimised: bool) -> Engine:
        """Deserialise a plan that was checked; the device's context is current."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        keep_optimised: bool = True,
        gpu: GpuOptions | None = None,
    ) -> None:
        del threads
        self._device: Device | None = Device()
        try:
            self._open(bundle, gpu or GpuOptions(), self._device, keep_optimised=keep_optimised)
        except BaseException as error:
            with self._device.freeing():
                # What TensorRT gave goes now, in this context, and not whenever the error is forgotten.
                traceback.clear_frames(error.__traceback__)
            self._device.free()
            raise
        if self._first_load is not None:
            try:
                self._first_load.verify(self)
            except BaseException:
                self.close()
                raise

    def _open(self, bundle: Bundle, gpu: GpuOptions, device: Device, *, keep_optimised: bool) -> None:
        machine = self.library.machine(device)
        plan = _plan(bundle, machine, gpu)
        if bundle.signed_by is not None:
            plan = read_plan(plan.record_path, bundle.signed_by)
        # Nothing of the plan reaches the library before this: it is executable code.
        plan.check()
        record = plan.record
        if record.failures:
            message = f"{plan.path} failed its checks when it was built: {'; '.join(record.failures)}. Build it again"
            warnings.warn(message, CalipsoWarning, stacklevel=2)
        first_load = FirstLoad(bundle=bundle, plan=plan, machine=machine)
        is_checked = record.parity != UNVERIFIED or not gpu.first_check or first_load.is_over()
        self._first_load = None if is_checked else first_load
        with device.current():
            engine = self._open_engine(plan, bundle, machine, keep_optimised=keep_optimised)
        self.record = record
        self.graph = f"{plan.path.parent.name}/{plan.path.name}"
        self.provider = f"{self.library.title} on {device.name}"
        self.metadata: Mapping[str, str] = {METADATA_MANIFEST: embedded_manifest(bundle.model_path)}
        self.inputs: Sequence[TensorInfo] = engine.inputs
        self.outputs: Sequence[TensorInfo] = engine.outputs
        self._engine = engine
        self._splits = gpu.oversize == "split"
        self._most = max(each.most for each in engine.ranges)
        # Weights that are fetched, and DLA's own work, are not captured.
        is_plain = not record.options.weight_streaming and record.options.dla_core is None
        uses_graphs = gpu.cuda_graphs and is_plain
        self._lanes = Lanes(
            lambda: Lane(engine, device, uses_graphs=uses_graphs), device, most=gpu.lanes, name=self.name
        )

    @property
    def most(self) -> int:
        """The largest batch that the engine takes at once."""
        return self._most

    def run(self, image: object, outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
        """Answer a batch: see `Backend.run` and `DeviceBackend`."""
        return self.submit(image, outputs).result()

    def submit(self, image: object, outputs: Sequence[str]) -> "Pending | Parts":
        """Start a batch, in parts where it is larger than every profile, and go on: see `DeviceBackend.submit`.

        Raises:
            BackendError: it is too large, and is not to be split; or lies on the device and is too large.
        """
        if not isinstance(image, np.ndarray):
            return self._lanes.submit(image, outputs)
        if len(image) <= self._most:
            return self._lanes.submit(np.ascontiguousarray(image), outputs)
        if not self._splits:
            message = (
                f"a batch of {len(image)} is larger than every profile of the engine ({self._most}): give smaller "
                "ones, let them be split, or build with a larger --batch"
            )
            raise BackendError(message)
        # All are started before the first is waited for: copies of one run beside the work of another.
        parts = np.array_split(image, -(-len(image) // self._most))
        return Parts([self._lanes.submit(np.ascontiguousarray(part), outputs) for part in parts])

    def layer_information(self) -> str:
        """Return the library's own account of the engine, as JSON."""
        return self._engine.information()

    def close(self) -> None:
        """Free contexts, engine and context of the device, in this order. Twice is allowed."""
        self._lanes.close()
        device, self._device = self._device, None
        if device is not None:
            with device.freeing():
                self._engine.free()
            device.free()


def _plan(bundle: Bundle, machine: Machine, gpu: GpuOptions) -> Plan:
    if gpu.plan is None:
        return find_plan(bundle, machine)
    if not gpu.plan.is_file():
        message = f"{gpu.plan} is not there: expected the record (.json) of a plan"
        raise UsageError(message)
    plan = read_plan(gpu.plan)
    if (reason := why_unfit(plan.record, bundle, machine)) is not None:
        message = f"{gpu.plan} does not run here: {reason}. Build one here: {build_command(bundle, machine)}"
        raise BackendUnavailableError(message)
    return plan
