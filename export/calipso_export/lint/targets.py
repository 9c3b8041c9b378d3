"""The releases of TensorRT, and of TensorRT for RTX, that a graph is checked for."""

import dataclasses
from collections.abc import Collection, Sequence

from calipso_runtime.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One release.

    Attributes:
        name: as users write it.
        version: major and minor of TensorRT; for TensorRT for RTX, of the TensorRT whose parser it has.
        max_opset: the newest ONNX opset that its parser takes.
        source: where that is said.
    """

    name: str
    version: tuple[int, int]
    max_opset: int
    source: str


_PREFIX = "tensorrt-"
# Every parser is backward compatible down to this opset (docs/operators.md of each release).
MIN_OPSET = 9
_EACH = (
    # 10.3's own operators.md could not be read: 10.1's says 20, and the changelog raises nothing until 10.3.
    Target(
        name="tensorrt-10.3", version=(10, 3), max_opset=20, source="onnx-tensorrt docs/operators.md (release/10.1-GA)"
    ),
    # 10.13's neither: the changelog has opset 21 from 10.9 on and ONNX 1.18 from 10.11 on; 10.14's says 24.
    Target(
        name="tensorrt-10.13",
        version=(10, 13),
        max_opset=22,
        source="DeepWiki's summary of onnx-tensorrt docs/operators.md before 10.14",
    ),
    Target(
        name="tensorrt-10.16",
        version=(10, 16),
        max_opset=24,
        source="onnx-tensorrt docs/operators.md (release/10.16-GA)",
    ),
    # operators.md says 24 in 11.1; 11.5's release notes add opset 25.
    Target(
        name="tensorrt-11.4",
        version=(11, 4),
        max_opset=24,
        source="onnx-tensorrt docs/operators.md (11.1); TensorRT release notes 11.5",
    ),
    Target(name="tensorrt-11.5", version=(11, 5), max_opset=25, source="onnx-tensorrt release notes 11.5"),
    # It takes what came with 11.5: opset 25, and Squeeze without axes.
    Target(
        name="tensorrt-rtx-1.7",
        version=(11, 5),
        max_opset=25,
        source="onnx-tensorrt release notes 11.5; TensorRT for RTX 1.7.1.116 itself checks no opset",
    ),
)
TARGETS = {target.name: target for target in _EACH}
ALL = tuple(TARGETS)
# TensorRT for RTX, whose compiler has judged its rules, and TensorRT, whose rules are read off documents and sources.
RTX = ("tensorrt-rtx-1.7",)
TENSORRT = tuple(name for name in ALL if name not in RTX)


def before(major: int, minor: int) -> tuple[str, ...]:
    """The targets of an older release."""
    return tuple(target.name for target in _EACH if target.version < (major, minor))


def since(major: int, minor: int, *, among: Collection[str] = ALL) -> tuple[str, ...]:
    """The targets of this release, or of a newer one."""
    return tuple(target.name for target in _EACH if target.version >= (major, minor) and target.name in among)


def declared(opset: int) -> tuple[str, ...]:
    """The targets that a graph of an opset is made for."""
    return tuple(target.name for target in _EACH if opset <= target.max_opset)


def named_targets(names: Sequence[str]) -> tuple[str, ...]:
    """Targets as users write them, "tensorrt-10.3" or "10.3", in the order of `ALL`; all where none is named.

    Raises:
        UsageError: there is no such target.
    """
    full = [name if name.startswith(_PREFIX) else f"{_PREFIX}{name}" for name in names]
    for given, name in zip(names, full, strict=True):
        if name not in TARGETS:
            message = f"the target is {given!r}: expected one of {', '.join(ALL)}"
            raise UsageError(message)
    return tuple(name for name in ALL if name in full) if full else ALL
