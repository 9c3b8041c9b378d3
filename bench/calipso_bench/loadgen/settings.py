"""LoadGen's settings for each scenario, from a short measurement and the time that may be spent.

MLPerf's own settings ask for ten minutes and thousands of queries. These are the shortest that
LoadGen calls valid, by its own early-stopping rule (mlcommons/inference, loadgen/early_stopping.cc):
at 99 % confidence a 90th percentile needs 64 queries, a 99th percentile 662; the Server scenario needs
more where queries are late.
"""

import dataclasses
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
# Queries that LoadGen's early stopping needs, by percentile.
_LEAST_QUERIES = {0.90: 64, 0.99: 662}
# MLPerf's number of samples in a query of MultiStream.
_MULTI_STREAM_SAMPLES = 8
# LoadGen makes its queries before the test: a faster system than expected would run out of them.
_EXPECTED_FASTER = 0.5
_OFFLINE_MARGINS = (1.1, 1.5, 2.5)
# The Server scenario's bound, in times of a slow single query; and the loads that are tried, as parts of
# what one query after the other gives. At two thirds a queue with random arrivals waits for about one query.
_BOUND_IN_QUERIES = 5
_LOADS = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
# So many times the least: late queries are then allowed.
_SERVER_QUERIES = 2
_NS_PER_S = 1e9
_MS_PER_S = 1e3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds end to end.

    Attributes:
        single_s: of a call with one picture, on average.
        slow_single_s: of the slowest tenth of these, at least.
        batched_per_picture_s: of a call with a large batch, per picture.
    """

    single_s: float
    slow_single_s: float
    batched_per_picture_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of one run.

    Attributes:
        scenario: LoadGen's name of it.
        settings: attributes of LoadGen's `TestSettings`.
        about: what else a reader has to know.
        expected_s: how long it will take about.
    """

    scenario: str
    settings: dict[str, Any]
    about: dict[str, Any]
    expected_s: float

    def test_settings(self, harness: ModuleType, mode: str) -> Any:
        """LoadGen's own object."""
        settings = harness.TestSettings()
        settings.scenario = getattr(harness.TestScenario, self.scenario)
        settings.mode = getattr(harness.TestMode, mode)
        for name, value in self.settings.items():
            setattr(settings, name, value)
        return settings


def plans(scenario: str, speed: Speed, seconds: float) -> Iterator[Plan]:
    """What to try, in this order, until a run is valid."""
    return {
        "SingleStream": _single_stream,
        "MultiStream": _multi_stream,
        "Offline": _offline,
        "Server": _server,
    }[scenario](speed, seconds)


def _single_stream(speed: Speed, seconds: float) -> Iterator[Plan]:
    # MLPerf's percentile of this scenario.
    least = _LEAST_QUERIES[0.90]
    yield Plan(
        scenario="SingleStream",
        settings={
            **_durations(seconds, least),
            "single_stream_target_latency_percentile": 0.90,
            "single_stream_expected_latency_ns": _ns(speed.single_s * _EXPECTED_FASTER),
        },
        about={"percentile": 0.90},
        expected_s=max(seconds, least * speed.single_s),
    )


def _multi_stream(speed: Speed, seconds: float) -> Iterator[Plan]:
    query_s = _MULTI_STREAM_SAMPLES * speed.batched_per_picture_s
    percentile = _percentile(seconds / query_s)
    least = _LEAST_QUERIES[percentile]
    yield Plan(
        scenario="MultiStream",
        settings={
            **_durations(seconds, least),
            "multi_stream_samples_per_query": _MULTI_STREAM_SAMPLES,
            "multi_stream_target_latency_percentile": percentile,
            "multi_stream_expected_latency_ns": _ns(query_s * _EXPECTED_FASTER),
        },
        about={"percentile": percentile},
        expected_s=max(seconds, least * query_s),
    )


def _offline(speed: Speed, seconds: float) -> Iterator[Plan]:
    for margin in _OFFLINE_MARGINS:
        yield Plan(
            scenario="Offline",
            settings={**_durations(seconds, 1), "offline_expected_qps": margin / speed.batched_per_picture_s},
            about={},
            # LoadGen itself adds a tenth.
            expected_s=seconds * margin * 1.1,
        )


def _server(speed: Speed, seconds: float) -> Iterator[Plan]:
    bound_s = math.ceil(_BOUND_IN_QUERIES * speed.slow_single_s * _MS_PER_S) / _MS_PER_S
    for load in _LOADS:
        qps = load / speed.single_s
        percentile = _percentile(seconds * qps / _SERVER_QUERIES)
        least = _SERVER_QUERIES * _LEAST_QUERIES[percentile]
        yield Plan(
            scenario="Server",
            settings={
                **_durations(seconds, least),
                "server_target_qps": qps,
                "server_target_latency_ns": _ns(bound_s),
                "server_target_latency_percentile": percentile,
            },
            about={"percentile": percentile, "latency_bound_ms": bound_s * _MS_PER_S},
            expected_s=max(seconds, least / qps),
        )


def _durations(seconds: float, least_queries: int) -> dict[str, int]:
    return {"min_duration_ms": math.ceil(seconds * _MS_PER_S), "min_query_count": least_queries}


def _percentile(queries: float) -> float:
    """The 99th where the time allows as many queries as that needs, else the 90th."""
    return 0.99 if queries >= _LEAST_QUERIES[0.99] else 0.90


def _ns(seconds: float) -> int:
    return max(1, round(seconds * _NS_PER_S))
