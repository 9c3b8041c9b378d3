"""The search for nodes that must stay in fp32: it finds exactly the culprits, in their order, and ends in time."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calipso_export.precision.layers import LayerError
from calipso_export.precision.repair import Repair, Trial, overflows, ranked, reason, search
from calipso_export.precision.trials import Trials
from calipso_export.progress import silent

LONG = 60.0


def row(name: str, own: float, *, peak: float = 1.0, kind: str = "float16") -> LayerError:
    return LayerError(node=name, operator="MatMul", kind=kind, error=own, own_error=own, peak=peak)


class Culprits:
    """A graph that passes once these nodes are in fp32, and what was tried on it."""

    def __init__(self, *names: str, seconds: float = 0.0) -> None:
        self.names = frozenset(names)
        self.seconds = seconds
        self.tried: list[frozenset[str]] = []

    def __call__(self, nodes: frozenset[str]) -> Trial:
        time.sleep(self.seconds)
        self.tried.append(nodes)
        return Trial(passed=self.names <= nodes, error=float(len(self.names - nodes)))


def searched(
    order: list[str], attempt: Callable[[frozenset[str]], Trial], *, surely: int = 0, seconds: float = LONG
) -> tuple[frozenset[str], Repair]:
    return search(order, surely=surely, attempt=attempt, seconds=seconds, progress=silent)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), count=st.integers(2, 40), surely=st.integers(0, 40))
def test_exactly_the_culprits_are_found_among_the_suspected_half(data: st.DataObject, count: int, surely: int) -> None:
    order = [f"n{place}" for place in range(count)]
    places = data.draw(st.sets(st.integers(0, count // 2 - 1), min_size=1))
    attempt = Culprits(*(order[place] for place in places))

    found, repair = searched(order, attempt, surely=min(surely, count))

    assert (found, repair.succeeded) == (attempt.names, True)
    assert repair.ended == "the set cannot be made smaller"


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 40), culprit=st.integers(0, 19))
def test_no_set_is_tried_twice_and_trials_are_few(count: int, culprit: int) -> None:
    order = [f"n{place}" for place in range(count)]
    attempt = Culprits(f"n{culprit}")

    _, repair = searched(order, attempt)

    assert len(set(attempt.tried)) == len(attempt.tried) == repair.trials
    # Doubling, bisection and halving: logarithms of the count.
    assert repair.trials <= 6 * math.log2(count + 1) + 3


def test_a_graph_that_only_passes_with_most_nodes_in_fp32_is_given_up_with_a_reason() -> None:
    order = [f"n{place}" for place in range(40)]

    found, repair = searched(order, Culprits("n2", "n30"))

    assert (found, repair.succeeded) == (frozenset(), False)
    assert repair.ended == "no set of layers that was tried passes"


def test_those_that_surely_overflow_are_tried_together_first() -> None:
    attempt = Culprits("a", "b", "c")

    found, _ = searched(["a", "b", "c", "d", "e", "f"], attempt, surely=3)

    assert attempt.tried[0] == {"a", "b", "c"}
    assert found == {"a", "b", "c"}


def test_one_that_was_wrongly_sure_is_given_back() -> None:
    found, _ = searched(["a", "b", "c", "d"], Culprits("b"), surely=3)

    assert found == {"b"}


def test_without_time_nothing_more_than_the_first_set_is_tried() -> None:
    attempt = Culprits("n3")

    found, repair = searched([f"n{place}" for place in range(40)], attempt, seconds=0)

    assert (found, repair.trials, repair.ended) == (frozenset(), 1, "the time is up")
    assert not repair.succeeded


def test_when_the_time_is_up_what_passes_is_kept_though_it_could_be_smaller() -> None:
    found, repair = searched(["a", "b", "c", "d"], Culprits("b"), surely=3, seconds=0)

    assert (found, repair.succeeded, repair.ended) == ({"a", "b", "c"}, True, "the time is up")


def test_a_search_stops_within_one_trial_of_its_time() -> None:
    attempt = Culprits(*(f"n{place}" for place in range(0, 300, 2)), seconds=0.05)
    started = time.monotonic()

    _, repair = searched([f"n{place}" for place in range(1000)], attempt, seconds=0.3)

    assert repair.ended == "the time is up"
    assert time.monotonic() - started < 0.3 + 2


def test_overflows_come_first_then_those_that_read_them_then_the_largest_own_errors() -> None:
    table = [
        row("small", 1e-4),
        row("overflows", math.inf, peak=1e6),
        row("large", 1e-2),
        row("reader", 1e-5),
        row("near the limit", 1e-5, peak=4e4),
        row("exact", 0.0),
        row("not lowered", 1.0),
    ]
    readers = {"overflows": ["reader", "not lowered"], "near the limit": ["overflows"], "large": ["exact"]}

    order, surely = ranked(table, readers, {each.node for each in table} - {"not lowered"})

    assert order == ["overflows", "near the limit", "reader", "large", "small"]
    assert surely == 3


@settings(max_examples=100, deadline=None)
@given(own=st.lists(st.floats(0, 1) | st.just(math.inf), max_size=12), data=st.data())
def test_every_lowered_node_with_an_error_is_suspected_once(own: list[float], data: st.DataObject) -> None:
    table = [row(str(place), error) for place, error in enumerate(own)]
    names = [each.node for each in table]
    some = st.lists(st.sampled_from(names)) if names else st.just([])
    readers = {name: data.draw(some) for name in names}

    order, surely = ranked(table, readers, names)

    assert surely <= len(order)
    assert len(set(order)) == len(order)
    assert {each.node for each in table if each.own_error > 0} <= set(order)


@pytest.mark.parametrize(
    ("peak", "kind", "own", "found"),
    [
        (3e4, "float16", 1e-4, False),
        (3.4e4, "float16", 1e-4, True),
        (3.4e4, "bfloat16", 1e-4, False),
        (3e38, "bfloat16", 1e-4, True),
        (1.0, "float16", math.inf, True),
        (1e30, "float", 1e-4, False),
    ],
)
def test_a_node_overflows_where_its_numbers_come_near_the_limit_of_its_type(
    peak: float, kind: str, own: float, found: bool
) -> None:
    assert overflows(row("n", own, peak=peak, kind=kind)) is found


def test_the_reason_is_told_in_words() -> None:
    assert reason(row("n", math.inf, peak=417372.8)) == "its output reaches 4.17e+05, beyond float16"
    assert reason(row("n", 0.0225)) == "it alone changes its output by 2.2e-02"


def test_trials_are_remembered_by_a_later_run_less_the_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "repair" / "trials.jsonl"
    first = Trials(path)
    first.add({"b", "a"}, Trial(passed=True, error=1e-3))
    first.add({"c"}, Trial(passed=False, error=math.inf))
    path.write_text(path.read_text() + '[["d"], tr')

    later = Trials(path)

    assert later.find({"a", "b"}) == Trial(passed=True, error=1e-3)
    assert later.find({"c"}) == Trial(passed=False, error=math.inf)
    assert later.find({"d"}) is None
