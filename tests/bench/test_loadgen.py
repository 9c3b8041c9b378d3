"""LoadGen drives a classifier in all four scenarios; nothing that goes wrong leaves it hanging."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import calipso_runtime
from calipso_bench import loadgen
from calipso_bench.loadgen import SCENARIOS, run_loadgen
from calipso_bench.loadgen.logs import read_answers, read_summary
from calipso_bench.loadgen.settings import Plan, Speed, plans
from calipso_bench.loadgen.system import System, drive
from calipso_runtime import Classifier
from calipso_runtime.errors import BackendError, CalipsoError, UsageError

mlperf_loadgen = pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen is made for Linux")

SECONDS = 0.1
RUNS = 5
SPEED = Speed(single_s=0.08, slow_single_s=0.1, batched_per_picture_s=0.08)


@pytest.fixture
def classifier(tiny: Path) -> Iterator[Classifier]:
    with calipso_runtime.load(tiny, backend="ort", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Small, so that a query takes a millisecond."""
    return [jpeg(seed) for seed in range(8)]


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


class Broken:
    """Answers a few times like the real one, and then fails."""

    backend = "ort"

    def __init__(self, classifier: Classifier, *, answers: int) -> None:
        self.classifier = classifier
        self.left = answers

    def classify(self, images: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            message = "the engine gave up"
            raise BackendError(message)
        return self.classifier.classify(images, **options)


class Confused:
    """Answers single pictures otherwise than many."""

    backend = "ort"

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def classify(self, images: Any, *, top: int = 5, **options: Any) -> Any:
        found = self.classifier.classify(images, top=7, **options)
        if top == 1 and isinstance(found, list):
            return [calipso_runtime.Prediction(each.scores[-1:]) for each in found]
        return found


def run(classifier: Any, pictures: list[bytes], logs: Path, **options: Any) -> list[dict[str, Any]]:
    return run_loadgen(classifier, pictures, **{"seconds": SECONDS, "logs": logs, **options})


def undisturbed(classifier: Classifier, pictures: list[bytes], folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The first of a few runs that LoadGen calls valid: other processes may take this machine's cores for a while."""
    for attempt in range(RUNS):
        entries = run(classifier, pictures, folder / f"logs{attempt}", **options)
        if all(entry["valid"] for entry in entries):
            break
    return entries


@pytest.mark.slow
def test_every_scenario_is_valid_and_answers_like_direct_calls(
    classifier: Classifier, pictures: list[bytes], tmp_path: Path
) -> None:
    entries = undisturbed(classifier, pictures, tmp_path)

    assert [entry["scenario"] for entry in entries] == list(SCENARIOS)
    for entry in entries:
        assert entry["valid"], entry
        assert entry["accuracy"] == {
            "queries": len(pictures),
            "pictures": len(pictures),
            "top1_equal_to_direct": 1.0,
            "differing": [],
        }
        assert "Result is : VALID" in (tmp_path / entry["log"]).read_text()
        assert entry["settings"]["min_duration_ms"] == round(1000 * SECONDS)
        assert "not an MLPerf submission" in entry["settings"]["harness"]
    assert json.dumps(entries)


def test_the_numbers_are_those_of_the_log(classifier: Classifier, pictures: list[bytes], tmp_path: Path) -> None:
    (entry,) = undisturbed(classifier, pictures, tmp_path, scenarios=["Server"])

    text = (tmp_path / entry["log"]).read_text()
    assert f"99.00 percentile latency (ns)   : {entry['result']['99_percentile_latency_ns']}\n" in text
    assert f"target_latency (ns): {entry['settings']['target_latency_ns']}\n" in text
    assert entry["settings"]["latency_bound_ms"] * 1e6 == entry["settings"]["target_latency_ns"]
    assert entry["result"]["completed_samples_per_second"] > 0
    assert entry["settings"]["attempts"][-1]["valid"]


def test_an_answer_that_differs_from_a_direct_call_is_counted(
    classifier: Classifier, pictures: list[bytes], tmp_path: Path
) -> None:
    (entry,) = run(Confused(classifier), pictures, tmp_path, scenarios=["SingleStream"])

    assert entry["accuracy"]["top1_equal_to_direct"] == 0
    assert entry["accuracy"]["differing"] == list(range(len(pictures)))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_classifier_that_fails_under_load_ends_the_run_with_its_error(
    classifier: Classifier, pictures: list[bytes], tmp_path: Path, scenario: str
) -> None:
    # The measurement and the direct call before LoadGen starts are so many; the first under load is answered.
    before = loadgen._WARM_UP_CALLS + loadgen._SINGLE_CALLS + loadgen._BATCH_CALLS + 1
    broken = Broken(classifier, answers=before + 1)

    with pytest.raises(BackendError, match="the engine gave up"):
        run(broken, pictures, tmp_path, scenarios=[scenario])


def test_an_interrupt_waits_for_loadgen_and_leaves_it_usable(
    classifier: Classifier, pictures: list[bytes], tmp_path: Path
) -> None:
    def interrupted(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(classifier, pictures, tmp_path, seconds=0.5, scenarios=["SingleStream"], progress=interrupted)
    assert run(classifier, pictures, tmp_path, scenarios=["SingleStream"])[0]["valid"]


def test_a_run_that_is_too_short_for_loadgen_is_told_with_its_reason(
    classifier: Classifier, pictures: list[bytes], tmp_path: Path
) -> None:
    settings = {"min_duration_ms": 1, "min_query_count": 1, "max_query_count": 2}
    plan = Plan(scenario="SingleStream", settings=settings, about={}, expected_s=1)
    system = System(mlperf_loadgen, classifier, pictures)

    drive(mlperf_loadgen, system, plan.test_settings(mlperf_loadgen, "PerformanceOnly"), tmp_path, lambda: None)

    summary = read_summary(tmp_path)
    assert not summary.valid
    assert any("Need to process at least 64 queries" in remark for remark in summary.recommendations)


def test_a_folder_without_logs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="holds no result of LoadGen"):
        read_summary(tmp_path)
    (tmp_path / "mlperf_log_accuracy.json").write_text('[{"qsl_idx": 0, "data": ""}]')
    with pytest.raises(BackendError, match="no answers that can be read"):
        read_answers(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenarios": ["Interactive"]}, "no scenario Interactive: expected SingleStream"),
        ({"seconds": 0}, "seconds is 0"),
    ],
)
def test_a_wrong_request_is_refused(
    classifier: Classifier, pictures: list[bytes], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(classifier, pictures, tmp_path, **options)


def test_no_pictures_are_refused(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one picture"):
        run_loadgen(classifier, [], seconds=SECONDS, logs=tmp_path)


def test_without_loadgen_the_extra_is_named(
    classifier: Classifier, pictures: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)

    with pytest.raises(CalipsoError, match=r"calipso\[bench\]"):
        run(classifier, pictures, tmp_path)


def test_the_percentile_is_the_99th_only_where_there_is_time_for_its_queries() -> None:
    (short,), (long,) = plans("MultiStream", SPEED, 10), plans("MultiStream", SPEED, 10_000)

    assert short.settings["multi_stream_target_latency_percentile"] == 0.90
    assert short.settings["min_query_count"] == 64
    assert long.settings["multi_stream_target_latency_percentile"] == 0.99
    assert long.settings["min_query_count"] == 662


def test_the_server_is_asked_for_less_until_it_keeps_its_bound() -> None:
    tried = list(plans("Server", SPEED, 10))

    rates = [plan.settings["server_target_qps"] for plan in tried]
    assert rates == sorted(rates, reverse=True)
    # Never as much as one query after the other would give: the queue would only grow.
    assert rates[0] < 1 / SPEED.single_s
    assert {plan.settings["server_target_latency_ns"] for plan in tried} == {500_000_000}
