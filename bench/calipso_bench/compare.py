"""Compares two runs: what became slower, by how much, and whether the machine explains it."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from calipso_bench.cells import Cell, Samples, listed, series
from calipso_bench.contenders import is_bundle
from calipso_bench.record import KIND, SCHEMA_VERSION
from calipso_bench.stats import Ratio, interval, resampled_medians
from calipso_runtime.errors import UsageError

DEFAULT_TOLERANCE = 0.05
# What makes the times of two bundles comparable. Precision and file may differ: that is what is compared.
_SAME_BUNDLE = ("model", "classes", "keys", "calip", "tip_adapter", "input")
# What a reader has to know where it differs.
_WORTH_A_NOTE = ("cpu", "instruction_sets", "cores", "python", "packages", "threads")
_SEED = 0

Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One contender in one cell.

    Attributes:
        cell: which cell.
        contender: its name.
        old: median of the old run, in the cell's unit.
        new: median of the new run.
        machine: by what the rivals' times changed, taken out of `ratio`; None where nothing was taken out.
        ratio: new over old, with its bootstrap interval.
        regressed: whether it is a bundle's, and slower beyond doubt and tolerance.
    """

    cell: Cell
    contender: str
    old: float
    new: float
    machine: float | None
    ratio: Ratio
    regressed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, and what could not be compared.

    Attributes:
        rows: sorted by cell.
        tolerance: of a regression.
        notes: differences of the runs that a reader has to know, in words.
    """

    rows: tuple[Row, ...]
    tolerance: float
    notes: tuple[str, ...]

    @functools.cached_property
    def regressions(self) -> tuple[Row, ...]:
        """Those rows that are regressions."""
        return tuple(row for row in self.rows if row.regressed)

    def markdown(self) -> str:
        """A table, the worst change first in each cell, and the notes."""
        lines = ["| cell | contender | old | new | machine | new / old | 95 % interval | |", _RULE]
        lines += [_line(row) for row in sorted(self.rows, key=lambda row: (row.cell, -row.ratio.ratio))]
        verdict = f"{len(self.regressions)} of {len(self.rows)} rows regressed" if self.regressions else "No regression"
        explained = (
            "`machine` is the rivals' median change in the same cell, and is taken out of `new / old` of the bundle's "
            f"rows. A bundle regresses where the whole interval lies above {1 + self.tolerance:.2f}."
        )
        return "\n".join([*lines, "", f"{verdict}. {explained}", *(f"- {note}" for note in self.notes)]) + "\n"


_RULE = "|---|---|---:|---:|---:|---:|---:|---|"


def compare(old: Mapping[str, Any], new: Mapping[str, Any], *, tolerance: float = DEFAULT_TOLERANCE) -> Comparison:
    """Compare two results documents cell by cell.

    A machine is never twice the same: other load, other clocks. Where both runs timed the same rivals
    in a cell, the median of the rivals' changes is what the machine did, and a bundle's ratio is taken
    relative to it. Everything is resampled together, so the interval holds the rivals' noise as well.
    Peak memory is compared as it is.

    Args:
        old: the baseline.
        new: what is judged.
        tolerance: relative slowdown that is no regression.

    Raises:
        UsageError: one is no results document of this schema version, the bundles are of different models or
            heads, or no cell was measured in both.
    """
    _check(old, new)
    before, after = series(old), series(new)
    shared = sorted(set(before) & set(after))
    if not shared:
        message = (
            f"the two runs have no cell in common: the old one has {listed(before)}; the new one has {listed(after)}. "
            "Measure again with the same --scenario, --stages, --batch and --threads"
        )
        raise UsageError(message)
    generator = np.random.default_rng(_SEED)
    rows = [row for cell in shared for row in _rows(cell, before[cell], after[cell], tolerance, generator)]
    notes = [*_differences(old, new), *_left_out(before, after, shared)]
    return Comparison(rows=tuple(rows), tolerance=tolerance, notes=tuple(notes))


def _rows(cell: Cell, old: Samples, new: Samples, tolerance: float, generator: np.random.Generator) -> Iterable[Row]:
    names = [name for name in new if name in old and old[name] and new[name]]
    changes = {name: _change(old[name], new[name], generator) for name in names}
    rivals = [changes[name] for name in names if not is_bundle(name)]
    machine = None
    if rivals and cell.unit == "ms":
        # First the medians themselves, then their resamples: the layout of `_change`.
        machine = np.median(np.stack(rivals), axis=0)
    for name in names:
        own = is_bundle(name)
        adjusted = changes[name] if machine is None or not own else changes[name] / machine
        low, high = interval(adjusted[1:])
        yield Row(
            cell=cell,
            contender=name,
            old=float(np.median(old[name])),
            new=float(np.median(new[name])),
            machine=float(machine[0]) if machine is not None and own else None,
            ratio=Ratio(ratio=float(adjusted[0]), low=low, high=high),
            regressed=own and low > 1 + tolerance,
        )


def _change(old: Sequence[float], new: Sequence[float], generator: np.random.Generator) -> Float64:
    """The ratio of the medians, then those of resampled medians."""
    ratio = float(np.median(new) / np.median(old))
    return np.concatenate([[ratio], _resampled(new, generator) / _resampled(old, generator)])


def _resampled(samples: Sequence[float], generator: np.random.Generator) -> Float64:
    return resampled_medians(np.asarray(samples, np.float64), generator)


def _check(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for which, document in (("old", old), ("new", new)):
        found = (document.get("kind"), document.get("schema_version"))
        if found != (KIND, SCHEMA_VERSION):
            message = (
                f"the {which} run is a {found[0]!r} document of schema version {found[1]!r}: expected {KIND!r} of "
                f"version {SCHEMA_VERSION}, written by `calipso bench --json`"
            )
            raise UsageError(message)
    differing = [
        f"{name} {old['bundle'].get(name)} against {new['bundle'].get(name)}"
        for name in _SAME_BUNDLE
        if old["bundle"].get(name) != new["bundle"].get(name)
    ]
    if differing:
        message = f"the two runs measured different classifiers: {'; '.join(differing)}. Compare runs of the same one"
        raise UsageError(message)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = old["environment"], new["environment"]
    # Results of earlier versions have no instruction sets: only what both runs record can differ.
    notes = [
        f"the runs differ in {name}: {before[name]} against {after[name]}"
        for name in _WORTH_A_NOTE
        if name in before and name in after and before[name] != after[name]
    ]
    if old["bundle"].get("sha256") != new["bundle"].get("sha256"):
        notes.append("the bundles are different files")
    return notes


def _left_out(before: Mapping[Cell, Samples], after: Mapping[Cell, Samples], shared: Sequence[Cell]) -> list[str]:
    """What only one run has: a regression could hide there."""
    notes = [f"only in the old run: {cell}" for cell in sorted(set(before) - set(after))]
    notes += [f"only in the new run: {cell}" for cell in sorted(set(after) - set(before))]
    for cell in shared:
        notes += [
            f"only in the {which} run: {name} in {cell}"
            for which, own, other in (("old", before[cell], after[cell]), ("new", after[cell], before[cell]))
            for name in sorted(set(own) - set(other))
        ]
    return notes


def _line(row: Row) -> str:
    verdict = ""
    if row.regressed:
        verdict = "**regressed**"
    elif is_bundle(row.contender) and row.ratio.high < 1:
        verdict = "faster"
    machine = "-" if row.machine is None else f"{row.machine:.3f}"
    return (
        f"| {row.cell} | {row.contender} | {row.old:.2f} {row.cell.unit} | {row.new:.2f} {row.cell.unit} | {machine} | "
        f"{row.ratio.ratio:.3f} | {row.ratio.low:.3f} to {row.ratio.high:.3f} | {verdict} |"
    )
