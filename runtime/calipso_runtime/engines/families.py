"""The two compilers of engines, and which GPUs TensorRT for RTX compiles for. Imports neither compiler.

TensorRT builds for the GPU of the machine that it runs on. TensorRT for RTX compiles ahead of time, on any machine, for
the compute capabilities that it is given. Both write plans; neither loads a plan of the other.
"""

import importlib.util
from collections.abc import Mapping, Sequence

from calipso_runtime.errors import BackendUnavailableError, UsageError

AUTO = "auto"
TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
# As messages call them.
NAMES: Mapping[str, str] = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT for RTX"}

Capability = tuple[int, int]
# Of TensorRT for RTX 1.7; an older release lacks the newest.
CAPABILITIES: tuple[Capability, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
# Turing takes no matrix product in fp32, and every graph has one. Where it is asked for they are rewritten, which costs
# the other GPUs of the same plan a kernel or two.
_DEFAULT_FROM: Capability = (8, 0)
# From which compute capability on a type has products.
_FIRST: Mapping[str, Capability] = {"bf16": (8, 0), "fp8": (8, 9)}
_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")


def sm(capability: Capability) -> str:
    """Return how NVIDIA calls a compute capability: "sm86"."""
    return f"sm{capability[0]}{capability[1]}"


def capabilities_of(text: str | None, precision: str) -> tuple[Capability, ...]:
    """Read the compute capabilities to compile for.

    Args:
        text: such as "sm86,sm89,sm120"; None takes all on which the precision runs.
        precision: of the bundle.

    Returns:
        Each once, the oldest first.

    Raises:
        UsageError: TensorRT for RTX does not compile for one of them, or the precision does not run on it.
    """
    least = _FIRST.get(precision, CAPABILITIES[0])
    if text is None:
        return tuple(each for each in CAPABILITIES if each >= max(least, _DEFAULT_FROM))
    by_name = {sm(each): each for each in CAPABILITIES}
    asked = [part.strip().lower() for part in text.split(",")]
    if unknown := [name for name in asked if name not in by_name]:
        message = (
            f"--capability {text}: {NAMES[TENSORRT_RTX]} does not compile for {unknown[0]!r}, only for "
            f"{', '.join(by_name)}. Jetson (sm87, sm110) and Hopper (sm90) stay with TensorRT: run `calipso build "
            "--engine tensorrt` on the device itself"
        )
        raise UsageError(message)
    found = sorted({by_name[name] for name in asked})
    if too_old := [each for each in found if each < least]:
        message = (
            f"--capability {text}: {_listed(too_old)} cannot compute in {precision}, the precision of the bundle. "
            f"Choose from {_listed([each for each in CAPABILITIES if each >= least])}, or export another --precision"
        )
        raise UsageError(message)
    return tuple(found)


def resolve(engine: str, *, ahead: bool) -> str:
    """Return the compiler to use.

    Args:
        engine: "auto" or a compiler: auto takes TensorRT where it works, else TensorRT for RTX where it is installed.
        ahead: whether compute capabilities are given, which only TensorRT for RTX takes.

    Raises:
        UsageError: there is no such compiler, or it takes no compute capabilities.
        BackendUnavailableError: neither compiler is there.
    """
    if engine not in (AUTO, *NAMES):
        message = f"engine {engine!r} is unknown: expected {AUTO}, {', '.join(NAMES)}"
        raise UsageError(message)
    if engine == TENSORRT and ahead:
        message = (
            f"--capability with --engine {TENSORRT}: TensorRT builds for the GPU of the machine that it runs on. Leave "
            f"--capability out, or compile with --engine {TENSORRT_RTX}"
        )
        raise UsageError(message)
    if engine != AUTO:
        return engine
    return TENSORRT_RTX if ahead else _here()


def _here() -> str:
    try:
        # It asks the driver first, and then imports TensorRT.
        importlib.import_module("calipso_runtime.backends.tensorrt")
    except BackendUnavailableError as error:
        if any(importlib.util.find_spec(name) is not None for name in _MODULES):
            return TENSORRT_RTX
        message = (
            f"{error}. Without a GPU {NAMES[TENSORRT_RTX]} compiles engines for others: pip install 'calipso[rtx]'"
        )
        raise BackendUnavailableError(message) from error
    return TENSORRT


def _listed(capabilities: Sequence[Capability]) -> str:
    return ", ".join(map(sm, capabilities))
