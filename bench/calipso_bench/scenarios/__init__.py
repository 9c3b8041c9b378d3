"""What is measured: each scenario in its own file. Cells are taken in one process, others in many."""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calipso_bench.sampling import Entrant, Tally

# Every contender in this process, in cells of stage, batch and threads: module and function.
CELLS: Mapping[str, str] = {
    "latency": "calipso_bench.scenarios.latency:measure",
    "throughput": "calipso_bench.scenarios.throughput:measure",
}
# A process per sample: module and number of samples.
PROCESSES: Mapping[str, str] = {
    "cold-start": "calipso_bench.scenarios.cold_start:SAMPLES",
    "memory": "calipso_bench.scenarios.memory:SAMPLES",
}
# MLCommons' own harness, which drives the bundle alone.
LOADGEN = "loadgen"
SCENARIOS = (*CELLS, *PROCESSES, LOADGEN)


def cell_measure(name: str) -> "Callable[[Sequence[Entrant], float, int], Tally]":
    """The function (entrants, seconds, seed) -> tally of a scenario of cells."""
    measure: Callable[[Sequence[Entrant], float, int], Tally] = pkgutil.resolve_name(CELLS[name])
    return measure


def process_samples(name: str) -> int:
    """How many processes per contender a scenario needs."""
    return int(pkgutil.resolve_name(PROCESSES[name]))
