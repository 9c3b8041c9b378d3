"""One of the two libraries that run plans, as the shared code is given it. Imports neither."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from calipso_runtime import devices
from calipso_runtime.backends.tensorrt_common.log import LogLines
from calipso_runtime.cuda.device import Device
from calipso_runtime.engines.families import NAMES, TENSORRT
from calipso_runtime.engines.plans import Machine
from calipso_runtime.errors import BackendUnavailableError

if TYPE_CHECKING:
    import tensorrt

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library:
    """TensorRT or TensorRT for RTX.

    Attributes:
        trt: its Python module.
        engine: of `families.NAMES`.
        new_log: makes a log that the library calls.
    """

    trt: ModuleType
    engine: str
    new_log: Callable[[], LogLines]

    @property
    def version(self) -> str:
        """Return the version: "11.4.0.106"."""
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """Return name and version: "TensorRT 11.4.0.106"."""
        return f"{NAMES[self.engine]} {self.version}"

    def machine(self, device: Device) -> Machine:
        """Return what a plan has to fit here."""
        return Machine(
            gpu=device.name,
            capability=device.capability,
            tensorrt=self.version,
            cuda_driver=devices.cuda_driver().version or "unknown",
            engine=self.engine,
        )

    @property
    def build_command(self) -> str:
        """Return the command that builds an engine, less the bundle."""
        return "calipso build" if self.engine == TENSORRT else f"calipso build --engine {self.engine}"

    def started(self, make: Callable[[], T], log: LogLines) -> T:
        """Make a builder or a runtime: the first call that fails where driver and library do not fit.

        Raises:
            BackendUnavailableError: the library does not start.
        """
        try:
            return make()
        except TypeError as error:
            # What the bindings make of a null pointer.
            driver = devices.cuda_driver().version
            message = (
                f"{self.title} does not start on a driver for CUDA {driver}: {log.take_errors()}. Upgrade the "
                f"driver, or install the {NAMES[self.engine]} that goes with it, and build again: {self.build_command}"
            )
            raise BackendUnavailableError(message) from error

    def new_runtime(self, log: LogLines) -> "tensorrt.Runtime":
        """Return a runtime.

        Raises:
            BackendUnavailableError: the library does not start.
        """
        trt = self.trt
        runtime: tensorrt.Runtime = self.started(lambda: trt.Runtime(log), log)
        return runtime

    def why_unavailable(self) -> str | None:
        """Return why no runtime can be made, or None. No plan is needed."""
        try:
            self.new_runtime(self.new_log())
        except BackendUnavailableError as error:
            return str(error)
        return None
