"""How samples are taken: contenders in turns, in a new order each round, until their medians are settled."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from calipso_bench.stats import is_settled
from calipso_bench.verification import Output
from calipso_runtime.errors import ParityError

# The pool of another engine spins for some milliseconds after its last call: it must not take our cores.
PAUSE_S = 0.05
# The 95 % interval of every median has to lie within this of it.
HALF_WIDTH = 0.02
# Before this many rounds a small interval is luck; and fewer than the second give no spread at all.
LEAST_ROUNDS = 5
_LEAST_ROUNDS_WHEN_SPENT = 3
# A turn's share of the time budget, and the most calls in one.
_TURN_SHARE = 0.05
_MOST_CALLS = 20
_MS = 1e3
# 10 nanoseconds: below what any clock tells, and results files stay small.
_DECIMALS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contender in one cell.

    Attributes:
        name: the contender's.
        call: asks it about the batch of this number; what is timed.
        check: compares an answer with the verified one of that number; says what is wrong.
        device_ms: of the last call, where the engine can tell.
        images: how many pictures one call answers.
    """

    name: str
    call: Callable[[int], Output]
    check: Callable[[int, Output], list[str]]
    device_ms: Callable[[], float | None]
    images: int


@dataclasses.dataclass
class Tally:
    """What was sampled in one cell; `stopped` is "interval" or "budget"."""

    samples_ms: dict[str, list[float]]
    device_ms: dict[str, list[float]]
    rechecked: int = 0
    rounds: int = 0
    stopped: str = ""

    @classmethod
    def of(cls, entrants: Sequence[Entrant]) -> "Tally":
        """An empty one."""
        return cls(samples_ms={each.name: [] for each in entrants}, device_ms={})


Turn = Callable[[Entrant, Tally], None]


def sample(entrants: Sequence[Entrant], turn: Turn, *, seconds: float, seed: int) -> Tally:
    """Let every contender have its turn, round after round.

    Args:
        entrants: who takes part.
        turn: takes a contender's samples of one round, after the pause and one untimed call.
        seconds: time budget per contender.
        seed: of the orders.

    Raises:
        ParityError: a timed call answered otherwise than the verified one.
    """
    tally = Tally.of(entrants)
    generator = np.random.default_rng(seed)
    budget_s = seconds * len(entrants)
    started = time.perf_counter()
    while not tally.stopped:
        for place in generator.permutation(len(entrants)):
            entrant = entrants[place]
            time.sleep(PAUSE_S)
            entrant.call(0)
            turn(entrant, tally)
        tally.rounds += 1
        tally.stopped = _why_stop(tally, time.perf_counter() - started, budget_s)
    return tally


def calls_per_turn(call_s: float, seconds: float) -> int:
    """How many timed calls a contender's turn holds, given what one takes and the time budget of the cell."""
    return max(1, min(_MOST_CALLS, int(_TURN_SHARE * seconds / call_s)))


def timed_call(entrant: Entrant, number: int, tally: Tally) -> Output:
    """One timed call; its answer is to be checked after the clock has stopped."""
    started = time.perf_counter()
    output = entrant.call(number)
    tally.samples_ms[entrant.name].append(round((time.perf_counter() - started) * _MS, _DECIMALS))
    device_ms = entrant.device_ms()
    if device_ms is not None:
        tally.device_ms.setdefault(entrant.name, []).append(round(device_ms, _DECIMALS))
    return output


def check(entrant: Entrant, number: int, output: Output, tally: Tally) -> None:
    """Hold a timed answer to the verified one.

    Raises:
        ParityError: it is another answer.
    """
    wrong = entrant.check(number, output)
    if wrong:
        message = (
            f"{entrant.name} answered a timed call otherwise than it did when it was verified: {'; '.join(wrong)}. "
            "Its times mean nothing; nothing of this cell is kept"
        )
        raise ParityError(message)
    tally.rechecked += 1


def _why_stop(tally: Tally, elapsed_s: float, budget_s: float) -> str:
    if tally.rounds >= LEAST_ROUNDS and all(is_settled(each, HALF_WIDTH) for each in tally.samples_ms.values()):
        return "interval"
    if elapsed_s >= budget_s and tally.rounds >= _LEAST_ROUNDS_WHEN_SPENT:
        return "budget"
    return ""
