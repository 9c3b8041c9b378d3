"""A stand-in for the module tensorrt_rtx that compiles nothing, and ends in the way that a test asks for.

`CALIPSO_RTX_STAND_IN` says how: "signal:SIGSEGV" ends the process as a defect does, "exit:3:TEXT" prints a text and
leaves, "refuse" answers that the graph cannot be built, "wait" goes on forever, "work" writes a plan.
"""

import enum
import os
import signal
import sys
import time
from pathlib import Path

__version__ = "1.7.0"
LISTING = (
    "Layers:\nName: tower/MatMul_myl0_1, LayerType: gemm, "
    "Inputs: [ { Name: image, Dimensions: [-1,8], Datatype: Half, Format: x }], "
    "Constants: [ { Name: w, Dimensions: [8,8], Datatype: Half, Format: x }], "
    "Outputs: [ { Name: logits, Dimensions: [-1,8], Datatype: Float, Format: x }], "
    "TacticName: , StreamId: 0, Metadata: [ONNX Layer: tower/MatMul]\n"
)

NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", ("STRONGLY_TYPED",), start=0)
ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", ("DETAILED",), start=0)
BuilderFlag = enum.IntEnum("BuilderFlag", ("TF32", "WEIGHT_STREAMING"), start=0)
MemoryPoolType = enum.IntEnum("MemoryPoolType", ("WORKSPACE",), start=0)
DataType = enum.IntEnum("DataType", ("FLOAT",), start=0)
# An older release: it lacks the newest GPU.
ComputeCapability = enum.IntEnum("ComputeCapability", ("NONE", "SM75", "SM80", "SM86", "SM89", "SM120"), start=0)


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


class Tensor:
    dtype = DataType.FLOAT

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class Network:
    num_inputs, num_outputs = 1, 2

    def get_input(self, index: int) -> Tensor:
        return Tensor("image", (-1, 3, 16, 16))

    def get_output(self, index: int) -> Tensor:
        return [Tensor("logits", (-1, 7)), Tensor("embedding", (-1, 5))][index]


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None: ...

    def parse_from_file(self, model: str) -> bool:
        return Path(model).is_file()


class Profile:
    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None: ...


class Config:
    def __init__(self) -> None:
        self.flags, self.num_compute_capabilities, self.capabilities = {"TF32"}, 0, []

    def clear_flag(self, flag: enum.Enum) -> None:
        self.flags.discard(flag.name)

    def set_flag(self, flag: enum.Enum) -> None:
        self.flags.add(flag.name)

    def set_memory_pool_limit(self, pool: enum.Enum, pool_size: int) -> None: ...

    def set_compute_capability(self, capability: enum.Enum, index: int) -> None:
        self.capabilities.append(capability.name)

    def add_optimization_profile(self, profile: Profile) -> int:
        return 0


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        how, *rest = os.environ["CALIPSO_RTX_STAND_IN"].split(":")
        config.progress_monitor.phase_start("Building engine", None, 2)
        self.logger.log(ILogger.Severity.VERBOSE, " ".join(["compiling for", *config.capabilities]))
        print("the compiler prints to its output")  # noqa: T201 - what must not disturb
        if how == "signal":
            os.kill(os.getpid(), getattr(signal, rest[0]))
        if how == "exit":
            print(rest[1], file=sys.stderr, flush=True)  # noqa: T201 - what a library would print
            os._exit(int(rest[0]))
        while how == "wait":
            time.sleep(0.05)
        if how == "refuse":
            self.logger.log(ILogger.Severity.ERROR, "Cannot compile operation 'mm' for Turing (SM75).")
            return None
        self.logger.log(ILogger.Severity.WARNING, "a warning of the compiler")
        self.logger.log(ILogger.Severity.VERBOSE, LISTING)
        config.progress_monitor.step_complete("Building engine", 0)
        config.progress_monitor.phase_finish("Building engine")
        return " ".join(sorted(config.flags | set(config.capabilities))).encode()
