"""How samples are taken."""

import time

import pytest

from calipso_bench import sampling
from calipso_bench.sampling import Entrant, Tally, calls_per_turn, check, sample, timed_call
from calipso_bench.scenarios import CELLS, PROCESSES, cell_measure, process_samples
from calipso_runtime.errors import ParityError


class Clocked:
    """An entrant that takes a given time, and notes what it was asked."""

    def __init__(self, name: str, *, call_s: float = 0.0, wrong_from: int | None = None) -> None:
        self.name = name
        self.call_s = call_s
        self.wrong_from = wrong_from
        self.asked: list[int] = []
        self.checked: list[int] = []

    def call(self, number: int) -> list[list[int]]:
        self.asked.append(number)
        time.sleep(self.call_s)
        return [[number]]

    def check(self, number: int, _: object) -> list[str]:
        self.checked.append(number)
        return ["another answer"] if self.wrong_from is not None and number >= self.wrong_from else []

    def entrant(self) -> Entrant:
        return Entrant(name=self.name, call=self.call, check=self.check, device_ms=lambda: None, images=1)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PAUSE_S", 0.0)


def one_call(entrant: Entrant, tally: Tally) -> None:
    check(entrant, 1, timed_call(entrant, 1, tally), tally)


def test_steady_contenders_stop_on_the_interval_after_five_rounds_at_least() -> None:
    both = [Clocked("a", call_s=0.005), Clocked("b", call_s=0.005)]

    tally = sample([each.entrant() for each in both], one_call, seconds=60, seed=0)

    assert tally.stopped == "interval"
    assert tally.rounds >= 5
    assert tally.rechecked == 2 * tally.rounds == sum(map(len, tally.samples_ms.values()))


def test_unsteady_contenders_stop_when_the_time_is_spent() -> None:
    def unsteady(entrant: Entrant, tally: Tally) -> None:
        tally.samples_ms[entrant.name].append(10.0 ** (tally.rounds % 4))

    tally = sample([Clocked("a", call_s=0.001).entrant()], unsteady, seconds=0.05, seed=0)

    assert tally.stopped == "budget"
    assert tally.rounds >= 3


def test_every_turn_begins_with_a_call_that_is_not_timed() -> None:
    one = Clocked("a", call_s=0.002)

    tally = sample([one.entrant()], one_call, seconds=60, seed=0)

    assert one.asked == [0, 1] * tally.rounds
    assert len(tally.samples_ms["a"]) == tally.rounds


def test_the_order_changes_from_round_to_round_and_not_from_run_to_run() -> None:
    def orders() -> list[str]:
        seen: list[str] = []

        def turn(entrant: Entrant, tally: Tally) -> None:
            seen.append(entrant.name)
            tally.samples_ms[entrant.name].append(1.0)

        sample([Clocked(name).entrant() for name in "abcd"], turn, seconds=60, seed=5)
        return ["".join(seen[start : start + 4]) for start in range(0, len(seen), 4)]

    first = orders()

    assert len(set(first)) > 1
    assert all(sorted(order) == list("abcd") for order in first)
    assert orders() == first


def test_another_answer_in_the_timed_loop_fails_the_run() -> None:
    one = Clocked("bundle/ort", wrong_from=1)

    with pytest.raises(ParityError, match="bundle/ort answered a timed call otherwise"):
        sample([one.entrant()], one_call, seconds=1, seed=0)


def test_a_sample_is_the_call_alone_in_milliseconds() -> None:
    tally = Tally.of([Clocked("a").entrant()])

    timed_call(Clocked("a", call_s=0.02).entrant(), 0, tally)

    assert 20 <= tally.samples_ms["a"][0] < 40


def test_the_devices_own_time_is_kept_beside() -> None:
    entrant = Entrant(name="a", call=lambda _: [[0]], check=lambda *_: [], device_ms=lambda: 1.5, images=1)
    tally = Tally.of([entrant])

    timed_call(entrant, 0, tally)

    assert tally.device_ms == {"a": [1.5]}


def test_a_turn_holds_more_calls_of_a_fast_contender() -> None:
    assert [calls_per_turn(call_s, 10.0) for call_s in (5.0, 0.1, 1e-6)] == [1, 5, 20]


def test_latency_gives_every_call_its_own_number_and_checks_it() -> None:
    one = Clocked("a", call_s=0.001)

    tally = cell_measure("latency")([one.entrant()], 0.05, 0)

    timed = len(tally.samples_ms["a"])
    assert one.checked == list(range(timed))
    assert tally.rechecked == timed


def test_throughput_counts_only_whole_timed_batches() -> None:
    one = Clocked("a", call_s=0.004)

    tally = cell_measure("throughput")([one.entrant()], 0.1, 0)

    # All calls but the untimed one of each round.
    assert len(tally.samples_ms["a"]) == len(one.asked) - tally.rounds
    assert all(sample_ms >= 4 for sample_ms in tally.samples_ms["a"])


def test_throughput_checks_after_the_slice_and_not_between_its_batches() -> None:
    order: list[str] = []
    entrant = Entrant(
        name="a",
        call=lambda _: (order.append("call"), time.sleep(0.004), [[0]])[2],
        check=lambda *_: order.append("check") or [],
        device_ms=lambda: None,
        images=1,
    )

    cell_measure("throughput")([entrant], 0.1, 0)

    assert "call call check check" in " ".join(order)


def test_every_scenario_of_the_tables_is_there() -> None:
    assert all(callable(cell_measure(name)) for name in CELLS)
    assert [process_samples(name) for name in PROCESSES] == [5, 3]
