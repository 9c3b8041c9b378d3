"""How an engine is built, as options of a command: those of `calipso build`."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from calipso_runtime.engines.options import AHEAD_PROFILES, DEFAULT_PROFILES, BatchRange, BuildOptions

_DEFAULT_BATCHES = f"{' and '.join(map(str, DEFAULT_PROFILES))}; with TensorRT for RTX {AHEAD_PROFILES[0]}"
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--batch",
        "batches",
        multiple=True,
        metavar="MIN,OPT,MAX",
        help=f"Batches the engine takes, or one number; may be given several times (default {_DEFAULT_BATCHES}).",
    ),
    click.option(
        "--workspace", "workspace_mib", type=int, metavar="MIB", help="Most memory a kernel may use meanwhile."
    ),
    click.option(
        "--level", "optimisation_level", type=int, default=3, show_default=True, help="0 fast build, 5 fast engine."
    ),
    click.option(
        "--version-compatible", is_flag=True, help="For later versions of TensorRT too, through its lean runtime."
    ),
    click.option("--hardware-compatible", is_flag=True, help="For every GPU from Ampere on; can be slower."),
    click.option(
        "--strip-weights", is_flag=True, help="Small plan; the weights come from model.onnx when it is loaded."
    ),
    click.option(
        "--weight-streaming", is_flag=True, help="Keep weights on the host where the device's memory is short."
    ),
    click.option(
        "--dla", "dla_core", type=int, metavar="CORE", help="Experimental: a Jetson's DLA, the GPU for the rest."
    ),
    click.option("--tf32", is_flag=True, help="Let fp32 products round their factors to 10 bits."),
)


def build_options(command: _Command) -> _Command:
    """Give a command the options that `options_of` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def options_of(*, batches: tuple[str, ...], ahead: bool = False, **flags: Any) -> BuildOptions:
    """What a command was given.

    Args:
        batches: texts of `--batch`; none takes the default of the compiler.
        ahead: whether TensorRT for RTX compiles.
        flags: the others.

    Raises:
        UsageError: a value is out of its range, or two do not go together.
    """
    default = AHEAD_PROFILES if ahead else DEFAULT_PROFILES
    return BuildOptions(profiles=tuple(map(BatchRange.parse, batches)) or default, **flags)
