"""Everything that a benchmark can be told, validated once."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calipso_bench.contenders import CONTENDERS
from calipso_bench.scenarios import SCENARIOS
from calipso_bench.verification import STAGES
from calipso_runtime.backends import ALL_BACKENDS, BACKENDS
from calipso_runtime.devices import cpu_count, cpu_quota
from calipso_runtime.errors import UsageError

AGAINST = ("eager", "compile", "ort-plain", "openvino")
# Settings that say where something lies or how it is shown: no part of what was measured.
_PLACES = ("bundle", "data", "json", "html", "markdown", "baseline", "checkpoint", "model", "overwrite", "tolerance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """One benchmark.

    Attributes:
        bundle: what is measured: a bundle's directory, or a bare `.onnx`.
        against: rivals, names of `contenders.CONTENDERS`.
        backends: of the runtime, on which the bundle itself takes part.
        batches: numbers of pictures per call.
        threads: CPU threads of every engine; each number is a set of cells of its own.
        stages: names of `STAGES`.
        scenarios: names of `SCENARIOS`.
        seconds: time budget per contender and cell.
        seed: of the contenders' order and of made-up pictures.
        data: a folder of pictures; made-up ones where None.
        checkpoint: the weights, needed for eager rivals where the bundle was exported from a file.
        model: the model's configuration file, needed for them where it was exported from one.
        json: where the results are kept, and where an interrupted run goes on.
        html: where the report for people is written.
        markdown: where the tables are written.
        overwrite: begin anew although the results file is of another run.
        baseline: results of an earlier run to compare with.
        tolerance: relative slowdown that is no regression yet.
    """

    bundle: Path
    against: tuple[str, ...] = AGAINST
    backends: tuple[str, ...] = tuple(BACKENDS)
    batches: tuple[int, ...] = (1, 8)
    threads: tuple[int, ...] = dataclasses.field(
        default_factory=lambda: (min(cpu_count(), cpu_quota() or cpu_count()),)
    )
    stages: tuple[str, ...] = STAGES
    scenarios: tuple[str, ...] = ("latency",)
    seconds: float = 10.0
    seed: int = 0
    data: Path | None = None
    checkpoint: Path | None = None
    model: Path | None = None
    json: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    overwrite: bool = False
    baseline: Path | None = None
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        _check_names("--against", self.against, tuple(CONTENDERS), may_be_empty=True)
        _check_names("--backends", self.backends, tuple(ALL_BACKENDS))
        _check_names("--stages", self.stages, STAGES)
        _check_names("--scenario", self.scenarios, (*SCENARIOS, "all"))
        _check_counts("--batch", self.batches)
        _check_counts("--threads", self.threads)
        if "all" in self.scenarios:
            object.__setattr__(self, "scenarios", SCENARIOS)
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            message = f"--seconds is {self.seconds}: expected a positive number"
            raise UsageError(message)
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            message = f"--tolerance is {self.tolerance}: expected a number of at least 0, .05 for 5 %"
            raise UsageError(message)
        if self.seed < 0:
            message = f"--seed is {self.seed}: expected a whole number of at least 0"
            raise UsageError(message)
        self._check_places()

    def _check_places(self) -> None:
        if self.data is not None and not self.data.is_dir():
            message = f"--data {self.data} is not a folder: expected a folder of pictures"
            raise UsageError(message)
        for name in ("baseline", "checkpoint", "model"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                message = f"--{name} {path} is not a file"
                raise UsageError(message)
        for name in ("json", "html", "markdown"):
            path = getattr(self, name)
            if path is not None and not path.absolute().parent.is_dir():
                message = f"--{name} {path} cannot be written: there is no folder {path.parent}"
                raise UsageError(message)

    def measured(self) -> dict[str, Any]:
        """What decides the measurements, as JSON types; no paths, which tell only where things lay."""
        document: dict[str, Any] = dataclasses.asdict(self)
        for name in _PLACES:
            document.pop(name)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in document.items()}


def _check_names(flag: str, given: Sequence[str], known: Sequence[str], *, may_be_empty: bool = False) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        message = f"{flag} has unknown names: {', '.join(unknown)}. Known: {', '.join(known)}"
        raise UsageError(message)
    if len(set(given)) != len(given) or not (given or may_be_empty):
        message = f"{flag} is {', '.join(given) or 'empty'}: expected names out of {', '.join(known)}, each once"
        raise UsageError(message)


def _check_counts(flag: str, given: Sequence[int]) -> None:
    if not given or any(count < 1 for count in given) or len(set(given)) != len(given):
        message = f"{flag} is {', '.join(map(str, given)) or 'empty'}: expected whole numbers of at least 1, each once"
        raise UsageError(message)
