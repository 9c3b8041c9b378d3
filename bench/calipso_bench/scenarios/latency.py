"""Latency: one call after another, each timed and checked by itself."""

import time
from collections.abc import Sequence

from calipso_bench.sampling import Entrant, Tally, calls_per_turn, check, sample, timed_call


def measure(entrants: Sequence[Entrant], seconds: float, seed: int) -> Tally:
    """Sample single calls: see `sampling.sample`."""
    # Turns of about the same time, not of the same count: a fast contender's median settles with the slow ones'.
    calls = {each.name: calls_per_turn(_call_s(each), seconds) for each in entrants}
    done: dict[str, int] = dict.fromkeys((each.name for each in entrants), 0)

    def turn(entrant: Entrant, tally: Tally) -> None:
        for _ in range(calls[entrant.name]):
            number = done[entrant.name]
            check(entrant, number, timed_call(entrant, number, tally), tally)
            done[entrant.name] += 1

    return sample(entrants, turn, seconds=seconds, seed=seed)


def _call_s(entrant: Entrant) -> float:
    started = time.perf_counter()
    entrant.call(0)
    return time.perf_counter() - started
