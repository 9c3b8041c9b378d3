"""Finds the fewest nodes that have to stay in higher precision for a graph to answer as it should.

Nodes whose numbers leave the type's range come first; the others by the error that they add alone.
The shortest prefix of that order that passes is found by bisection, and then thinned out: each half,
quarter and so on of it is given back, as long as the rest still passes (delta debugging; A. Zeller and
R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002).
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir

from calipso_export.precision.half import largest
from calipso_export.precision.layers import LayerError
from calipso_export.progress import Progress

# Below this share of the type's largest number a value may still grow with other pictures.
_HEADROOM = 0.5
_RANGED = {kind.name.lower(): largest(kind) for kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)}
# What the bisection may pin at most; a graph that needs more is not of this precision.
_MOST_SHARE = 0.5
_WHAT = "looking for layers that must stay in fp32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What a graph with some nodes pinned answers on the pictures of the search.

    Attributes:
        passed: whether every gate is met.
        error: largest relative logit error.
    """

    passed: bool
    error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repair:
    """The outcome of a search.

    Attributes:
        pinned: by node that has to stay in higher precision, why; empty where nothing was found.
        succeeded: whether the graph with them passes on the pictures of the search.
        trials: graphs that were tried.
        ended: why the search ended.
    """

    pinned: Mapping[str, str]
    succeeded: bool
    trials: int
    ended: str


def ranked(
    table: Sequence[LayerError], readers: Mapping[str, Iterable[str]], candidates: Iterable[str]
) -> tuple[list[str], int]:
    """Nodes in the order in which they are suspected, and how many of the first surely have to be pinned.

    Args:
        table: what every node does to the answers.
        readers: by node, those that read its output: what does not fit in one type cannot be read in it either.
        candidates: nodes that are not in fp32 anyway.
    """
    allowed = set(candidates)
    overflowing = [row.node for row in table if row.node in allowed and overflows(row)]
    reading = [name for node in overflowing for name in readers.get(node, ()) if name in allowed]
    first = list(dict.fromkeys([*overflowing, *reading]))
    rest = [row for row in table if row.node in allowed and row.node not in first and row.own_error > 0]
    return [*first, *(row.node for row in sorted(rest, key=lambda row: -row.own_error))], len(first)


def overflows(row: LayerError) -> bool:
    """Whether a node's numbers leave the range of its type, or come close."""
    return row.own_error == float("inf") or row.peak > _HEADROOM * _RANGED.get(row.kind, float("inf"))


def reason(row: LayerError) -> str:
    """Why a node is pinned, in words."""
    if overflows(row):
        return f"its output reaches {row.peak:.3g}, beyond {row.kind}"
    return f"it alone changes its output by {row.own_error:.1e}"


def search(
    order: Sequence[str],
    *,
    surely: int,
    attempt: Callable[[frozenset[str]], Trial],
    seconds: float,
    progress: Progress,
) -> tuple[frozenset[str], Repair]:
    """Look for a small set of nodes with which a graph passes.

    Args:
        order: nodes as suspected, the worst first.
        surely: so many of the first are tried together before anything else.
        attempt: makes the graph with these nodes pinned and asks it.
        seconds: after which the best so far is taken.
        progress: told after each trial how much of the time is used.

    Returns:
        The nodes, and how the search went; its `pinned` is left to the caller, who knows the reasons.
    """
    started = time.monotonic()
    ended = started + seconds
    tried: dict[frozenset[str], Trial] = {}

    def passes(nodes: Iterable[str]) -> bool:
        chosen = frozenset(nodes)
        if chosen not in tried:
            tried[chosen] = attempt(chosen)
            progress(_WHAT, min(int(time.monotonic() - started), int(seconds)), int(seconds))
        return tried[chosen].passed

    def in_time() -> bool:
        return time.monotonic() < ended

    progress(_WHAT, 0, int(seconds))
    best = _shortest_prefix(order, surely, passes, in_time)
    if best is None:
        why = "the time is up" if not in_time() else "no set of layers that was tried passes"
        return frozenset(), Repair(pinned={}, succeeded=False, trials=len(tried), ended=why)
    kept = _thinned(best, passes, in_time)
    progress(_WHAT, int(seconds), int(seconds))
    why = "the set cannot be made smaller" if in_time() else "the time is up"
    return frozenset(kept), Repair(pinned={}, succeeded=True, trials=len(tried), ended=why)


def _shortest_prefix(
    order: Sequence[str], surely: int, passes: Callable[[Iterable[str]], bool], in_time: Callable[[], bool]
) -> list[str] | None:
    """By bisection between what surely has to be pinned and the most that may be."""
    low, high = max(surely, 1), max(surely, int(len(order) * _MOST_SHARE), 1)
    if passes(order[:low]):
        return list(order[:low])
    # Doubling first: few are needed as a rule, and each trial with many costs as much.
    step = low
    while step < high and in_time():
        step = min(high, step * 2)
        if passes(order[:step]):
            high = step
            break
        low = step
    else:
        return None
    while high - low > 1 and in_time():
        middle = (low + high) // 2
        if passes(order[:middle]):
            high = middle
        else:
            low = middle
    return list(order[:high])


def _thinned(nodes: list[str], passes: Callable[[Iterable[str]], bool], in_time: Callable[[], bool]) -> list[str]:
    """Give back halves, quarters, ... single nodes, as long as the rest passes."""
    size = max(1, len(nodes) // 2)
    while in_time():
        start = 0
        while start < len(nodes) and in_time():
            rest = nodes[:start] + nodes[start + size :]
            if rest and passes(rest):
                nodes = rest
            else:
                start += size
        if size == 1:
            break
        size = max(1, size // 2)
    return nodes
