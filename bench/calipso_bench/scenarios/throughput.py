"""Throughput: batches back to back for a slice of time; only whole timed batches count.

Images per second are the images of the timed batches over the time of the same batches.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from calipso_bench.sampling import LEAST_ROUNDS, Entrant, Tally, check, sample, timed_call

if TYPE_CHECKING:
    from calipso_bench.verification import Output


def measure(entrants: Sequence[Entrant], seconds: float, seed: int) -> Tally:
    """Sample slices of back-to-back batches: see `sampling.sample`."""
    slice_s = seconds / LEAST_ROUNDS

    def turn(entrant: Entrant, tally: Tally) -> None:
        answers: list[Output] = []
        end = time.perf_counter() + slice_s
        while not answers or time.perf_counter() < end:
            answers.append(timed_call(entrant, len(answers), tally))
        # Only now: between the batches nothing but the batches is done.
        for number, answer in enumerate(answers):
            check(entrant, number, answer, tally)

    return sample(entrants, turn, seconds=seconds, seed=seed)
