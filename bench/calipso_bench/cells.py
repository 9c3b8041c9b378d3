"""The cells of a results document by what was measured in them: what two runs have in common."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

_MS_PER_S = 1e3
_MIB = 2**20

# By contender.
Samples: TypeAlias = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """What was measured: times of a scenario's stage, or of whole processes ("cold-start", "memory")."""

    scenario: str
    stage: str
    batch: int
    threads: int
    unit: str

    def __str__(self) -> str:
        stage = f" {self.stage}, batch {self.batch}" if self.stage else ""
        return f"{self.scenario}{stage}, {threads_in_words(self.threads)}"


def series(document: Mapping[str, Any]) -> dict[Cell, Samples]:
    """Samples by cell and contender: times, and of processes the cold start and the peak memory too."""
    found: dict[Cell, dict[str, Sequence[float]]] = {}
    for cell in document["cells"]:
        key = {name: cell[name] for name in ("scenario", "stage", "batch", "threads")}
        found[Cell(unit="ms", **key)] = cell["samples_ms"]
    for process in document["processes"]:
        for scenario, unit, name, scale in (
            ("cold-start", "ms", "total_s", _MS_PER_S),
            ("memory", "MiB", "peak_rss_bytes", 1 / _MIB),
        ):
            cell = Cell(scenario=scenario, stage="", batch=1, threads=process["threads"], unit=unit)
            values = [scale * sample[name] for sample in process["samples"] if sample.get(name)]
            found.setdefault(cell, {})[process["contender"]] = values
    return {cell: samples for cell, samples in found.items() if any(samples.values())}


def threads_in_words(count: int) -> str:
    """For people."""
    return "1 thread" if count == 1 else f"{count} threads"


def cpu_in_words(environment: Mapping[str, Any]) -> str:
    """Return the CPU of a results document, and its instruction sets where the document records them."""
    sets = environment.get("instruction_sets")
    return f"{environment['cpu']} ({', '.join(sets)})" if sets else str(environment["cpu"])


def listed(cells: Iterable[Cell]) -> str:
    """For a message."""
    return "; ".join(map(str, sorted(cells))) or "none"
