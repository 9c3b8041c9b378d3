"""What an engine is built with, and the same as a command line of trtexec."""

import dataclasses
import shlex
from collections.abc import Sequence

from calipso_runtime.errors import UsageError

_RANGE_PARTS = 3
_LEVELS = range(6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchRange:
    """One optimisation profile: the batches that it takes, and the one that kernels are chosen for.

    Raises:
        UsageError: it does not hold 1 <= least <= best <= most.
    """

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            message = f"batches {self}: expected MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX"
            raise UsageError(message)

    def __str__(self) -> str:
        return f"{self.least},{self.best},{self.most}"

    @classmethod
    def parse(cls, text: str) -> "BatchRange":
        """Read "1,8,32", or "8" for this batch alone."""
        parts = text.split(",")
        try:
            numbers = [int(part) for part in parts]
        except ValueError as error:
            message = f"batches {text!r}: expected MIN,OPT,MAX or one number, such as 1,8,32"
            raise UsageError(message) from error
        if len(numbers) == 1:
            numbers *= _RANGE_PARTS
        if len(numbers) != _RANGE_PARTS:
            message = f"batches {text!r}: expected MIN,OPT,MAX or one number, such as 1,8,32"
            raise UsageError(message)
        return cls(least=numbers[0], best=numbers[1], most=numbers[2])


# One picture as fast as it goes, and batches of a stream: a profile that spans both is tuned for neither.
DEFAULT_PROFILES = (BatchRange(least=1, best=1, most=1), BatchRange(least=2, best=8, most=32))
# Of TensorRT for RTX, which specialises its kernels for every batch size on the GPU: one profile is enough.
AHEAD_PROFILES = (BatchRange(least=1, best=8, most=32),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build. The precision is not among them: the graph says it, and the network is strongly typed.

    Attributes:
        profiles: batches that the engine takes, tried in this order.
        workspace_mib: memory that a kernel may use while it runs; None leaves it to TensorRT (all there is).
        optimisation_level: 0 (fast build) to 5 (fast engine); 3 is TensorRT's own default.
        version_compatible: for later versions of TensorRT too, through their lean runtime; can be slower.
        hardware_compatible: for every GPU from Ampere on; can be slower.
        strip_weights: leave the weights out of the plan and take them from model.onnx when it is loaded.
        weight_streaming: keep weights in the host's memory and fetch them while running, where the device's
            does not suffice.
        dla_core: run what it can on this core of a Jetson's DLA, the rest on the GPU. Experimental: DLA takes
            fixed batches only, and TensorRT 11.0 and 11.1 have none.
        tf32: let fp32 products round their factors to 10 bits. Off: a graph in fp32 says fp32.

    Raises:
        UsageError: a value is out of its range, or two do not go together.
    """

    profiles: tuple[BatchRange, ...] = DEFAULT_PROFILES
    workspace_mib: int | None = None
    optimisation_level: int = 3
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    dla_core: int | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        wrong = self._out_of_range() or self._contradiction()
        if wrong is not None:
            raise UsageError(wrong)

    def _out_of_range(self) -> str | None:
        if not self.profiles:
            return "no batches: expected at least one profile, such as --batch 1,8,32"
        if self.workspace_mib is not None and self.workspace_mib < 1:
            return f"workspace is {self.workspace_mib} MiB: expected at least 1"
        if self.optimisation_level not in _LEVELS:
            return f"optimisation level is {self.optimisation_level}: expected 0 to {_LEVELS[-1]}"
        if self.dla_core is not None and self.dla_core < 0:
            return f"DLA core is {self.dla_core}: expected 0 or more"
        return None

    def _contradiction(self) -> str | None:
        if self.version_compatible and self.strip_weights:
            return "--version-compatible with --strip-weights: the lean runtime cannot put weights in; choose one"
        if self.dla_core is not None and any(each.least != each.most for each in self.profiles):
            return "--dla takes fixed batches only: give each as one number, such as --batch 1"
        if self.dla_core is not None and (self.strip_weights or self.weight_streaming):
            return "--dla with --strip-weights or --weight-streaming: DLA holds its weights itself; choose one"
        return None

    @property
    def most(self) -> int:
        """The largest batch of all profiles."""
        return max(each.most for each in self.profiles)


def trtexec_command(
    options: BuildOptions, *, model: str, plan: str, image: Sequence[int], name: str = "image"
) -> list[str]:
    """The same build by NVIDIA's trtexec, as an argument list; `shlex.join` makes it a line.

    Args:
        options: of the build.
        model: path of the graph.
        plan: path that the plan is written to.
        image: shape of one input, [3,H,W], or [P,3] of points.
        name: of the input.
    """
    size = "x".join(map(str, image))
    command = ["trtexec", f"--onnx={model}", f"--saveEngine={plan}", "--stronglyTyped"]
    for place, each in enumerate(options.profiles):
        if len(options.profiles) > 1:
            command.append(f"--profile={place}")
        command += [
            f"--{which}Shapes={name}:{batch}x{size}"
            for which, batch in (("min", each.least), ("opt", each.best), ("max", each.most))
        ]
    command += [f"--builderOptimizationLevel={options.optimisation_level}", "--profilingVerbosity=detailed"]
    flags = {
        f"--memPoolSize=workspace:{options.workspace_mib}M": options.workspace_mib is not None,
        "--noTF32": not options.tf32,
        "--versionCompatible": options.version_compatible,
        "--excludeLeanRuntime": options.version_compatible,
        "--hardwareCompatibilityLevel=ampere+": options.hardware_compatible,
        "--stripWeights": options.strip_weights,
        "--allowWeightStreaming": options.weight_streaming,
        f"--useDLACore={options.dla_core}": options.dla_core is not None,
        "--allowGPUFallback": options.dla_core is not None,
    }
    return command + [flag for flag, is_set in flags.items() if is_set]


def build_words(options: BuildOptions) -> list[str]:
    """The same build by `calipso build`: the words after the bundle."""
    words = [word for each in options.profiles for word in ("--batch", str(each))]
    if options.optimisation_level != BuildOptions.optimisation_level:
        words += ["--level", str(options.optimisation_level)]
    words += [] if options.workspace_mib is None else ["--workspace", str(options.workspace_mib)]
    words += [] if options.dla_core is None else ["--dla", str(options.dla_core)]
    flags = {
        "--version-compatible": options.version_compatible,
        "--hardware-compatible": options.hardware_compatible,
        "--strip-weights": options.strip_weights,
        "--weight-streaming": options.weight_streaming,
        "--tf32": options.tf32,
    }
    return words + [flag for flag, is_set in flags.items() if is_set]


def as_line(command: Sequence[str]) -> str:
    """A command as a shell takes it, one argument to a line."""
    return " \\\n  ".join(shlex.quote(part) for part in command)
