"""MLPerf LoadGen drives a loaded classifier: a harness that nobody here wrote measures it.

Every query is end to end, from the bytes of an encoded picture to the best classes. This is a run
driven by LoadGen, with settings short enough for a desk, and no MLPerf submission: each entry holds
the settings that LoadGen itself reported.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from calipso_bench.loadgen.logs import read_answers, read_summary
from calipso_bench.loadgen.settings import SCENARIOS, Plan, Speed, plans
from calipso_bench.loadgen.system import BATCH, System, drive
from calipso_export.progress import Progress, silent
from calipso_runtime import Classifier
from calipso_runtime.errors import BackendUnavailableError, UsageError

__all__ = ["SCENARIOS", "run_loadgen"]

_WARM_UP_CALLS = 3
_SINGLE_CALLS = 24
_BATCH_CALLS = 3
# Largest share of progress that is shown before a run has really ended.
_PROGRESS_STEPS = 100


def run_loadgen(
    classifier: Classifier,
    pictures: Sequence[bytes],
    *,
    scenarios: Sequence[str] = SCENARIOS,
    seconds: float,
    logs: Path,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Run LoadGen's scenarios, each in performance mode and then in accuracy mode.

    Args:
        classifier: what is measured; it stays open.
        pictures: encoded pictures, which the query-sample library holds.
        scenarios: out of `SCENARIOS`.
        seconds: least duration of each performance run.
        logs: a folder; each run's logs are kept in it, `<scenario>/<mode>/mlperf_log_*`.
        progress: told while LoadGen runs.

    Returns:
        One entry of the results document per scenario: `valid`; `result`, every number that LoadGen reports;
        `settings`, as LoadGen reports them, and the other ones that were tried; `log`, relative to the folder of
        `logs`; and `accuracy`, the logged answers against direct calls.

    Raises:
        UsageError: an unknown scenario, no pictures, or a duration that is not above 0.
        BackendUnavailableError: LoadGen is not installed.
        CalipsoError: whatever the classifier raises; nothing that was measured counts then.
    """
    _check(pictures, scenarios, seconds)
    harness = _harness()
    speed = _speed(classifier, pictures)
    direct = [prediction[0].index for prediction in classifier.classify(list(pictures), top=1)]
    return [
        _Scenario(
            name=name, harness=harness, classifier=classifier, pictures=pictures, logs=logs, progress=progress
        ).entry(plans(name, speed, seconds), direct)
        for name in scenarios
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scenario:
    """One of LoadGen's scenarios, and all that its runs need."""

    name: str
    harness: ModuleType
    classifier: Classifier
    pictures: Sequence[bytes]
    logs: Path
    progress: Progress

    def entry(self, candidates: Iterator[Plan], direct: Sequence[int]) -> dict[str, Any]:
        """Run the plans until one is valid, then accuracy mode with its settings."""
        attempts: list[dict[str, Any]] = []
        for plan in candidates:
            folder = Path(self.name) / f"performance-{len(attempts) + 1}"
            self._run(plan, "PerformanceOnly", folder)
            summary = read_summary(self.logs / folder)
            attempts.append({**plan.settings, "valid": summary.valid})
            if summary.valid:
                break
        accuracy = Path(self.name) / "accuracy"
        self._run(plan, "AccuracyOnly", accuracy)
        return {
            "scenario": self.name,
            "valid": summary.valid,
            "result": summary.result,
            "settings": {**summary.settings, **self._own_settings(plan), "attempts": attempts},
            "log": str(self.logs.name / folder / "mlperf_log_summary.txt"),
            "why_invalid": list(summary.recommendations),
            "accuracy": _compared(read_answers(self.logs / accuracy), direct),
        }

    def _own_settings(self, plan: Plan) -> dict[str, Any]:
        """What LoadGen does not write down."""
        return {
            "harness": f"mlcommons-loadgen {_version()}, not an MLPerf submission",
            "largest_batch": BATCH,
            "backend": self.classifier.backend,
            **plan.about,
        }

    def _run(self, plan: Plan, mode: str, folder: Path) -> None:
        outcome = self.logs / folder
        outcome.mkdir(parents=True, exist_ok=True)
        settings = plan.test_settings(self.harness, mode)
        what = f"LoadGen {self.name}, {'accuracy' if mode == 'AccuracyOnly' else 'performance'}"
        system = System(self.harness, self.classifier, self.pictures)
        self.progress(what, 0, _PROGRESS_STEPS)
        started = time.perf_counter()

        def waiting() -> None:
            share = (time.perf_counter() - started) / plan.expected_s
            self.progress(what, min(int(share * _PROGRESS_STEPS), _PROGRESS_STEPS - 1), _PROGRESS_STEPS)

        drive(self.harness, system, settings, outcome, waiting)
        self.progress(what, _PROGRESS_STEPS, _PROGRESS_STEPS)


def _check(pictures: Sequence[bytes], scenarios: Sequence[str], seconds: float) -> None:
    unknown = [name for name in scenarios if name not in SCENARIOS]
    if unknown:
        message = f"LoadGen has no scenario {', '.join(unknown)}: expected {', '.join(SCENARIOS)}"
        raise UsageError(message)
    if not pictures:
        message = "LoadGen needs at least one picture to ask about, and got none"
        raise UsageError(message)
    if not seconds > 0:
        message = f"seconds is {seconds}: expected a duration above 0"
        raise UsageError(message)


def _harness() -> ModuleType:
    try:
        import mlperf_loadgen
    except ImportError as error:
        message = "MLPerf LoadGen is not installed: pip install 'calipso[bench]' on Linux, or leave out `loadgen`"
        raise BackendUnavailableError(message) from error
    return mlperf_loadgen  # type: ignore[no-any-return]


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("mlcommons-loadgen")


def _speed(classifier: Classifier, pictures: Sequence[bytes]) -> Speed:
    """A short measurement, from which the settings follow; nothing of it is reported."""
    for picture in islice(cycle(pictures), _WARM_UP_CALLS):
        classifier.classify(picture)
    # Pictures differ: a large one may take ten times as long to decode.
    single = [_seconds(classifier, [picture]) for picture in islice(cycle(pictures), _SINGLE_CALLS)]
    batch = list(islice(cycle(pictures), BATCH))
    batched = statistics.median(_seconds(classifier, batch) for _ in range(_BATCH_CALLS))
    return Speed(
        single_s=statistics.fmean(single),
        slow_single_s=statistics.quantiles(single, n=10)[-1],
        batched_per_picture_s=batched / BATCH,
    )


def _seconds(classifier: Classifier, pictures: list[bytes]) -> float:
    start = time.perf_counter()
    classifier.classify(pictures, batch=BATCH)
    return time.perf_counter() - start


def _compared(answers: dict[int, int], direct: Sequence[int]) -> dict[str, Any]:
    """LoadGen's logged best classes against direct calls."""
    equal = sum(direct[index] == answer for index, answer in answers.items())
    return {
        "queries": len(answers),
        "pictures": len(direct),
        "top1_equal_to_direct": equal / len(answers) if answers else 0.0,
        "differing": sorted(index for index, answer in answers.items() if direct[index] != answer),
    }
