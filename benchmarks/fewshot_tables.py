"""The table of the search for alpha and beta on real features, from results/fewshot.json."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks import RESULTS
from calipso_bench.markdown import table

Row = Mapping[str, Any]


def fewshot_table() -> str:
    """Top-1 of each way by set and shots, the mean over the sets, and the paired difference to the released search."""
    document = json.loads((RESULTS / "fewshot.json").read_text(encoding="utf-8"))
    rows: list[Row] = document["rows"]
    ways = list(rows[0]["top1"])
    released, own = ways[-2], ways[-1]
    lines = [
        (
            row["set"],
            str(row["shots"]),
            *(f"{100 * row['top1'][way]:.2f}" for way in ways),
            _difference(row["over"][released]),
        )
        for row in rows
    ]
    counts = list(dict.fromkeys(row["shots"] for row in rows))
    means = [(count, [row for row in rows if row["shots"] == count]) for count in counts]
    lines += [
        ("mean of all sets", str(count), *(f"{100 * _mean(some, way):.2f}" for way in ways), _gain(some, released, own))
        for count, some in means
    ]
    columns = ("features", "shots", *ways, f"{own}, less the released search")
    draws = rows[0]["draws"]
    return f"Top-1 in %, the mean of {draws} draws of the shots:\n\n{table(columns, lines)}"


def _difference(found: Row) -> str:
    low, high = (100 * end for end in found["interval_95"])
    return f"{100 * found['gain']:+.2f} ({low:+.2f} to {high:+.2f})"


def _mean(rows: list[Row], way: str) -> float:
    return float(sum(row["top1"][way] for row in rows) / len(rows))


def _gain(rows: list[Row], released: str, own: str) -> str:
    return f"{100 * (_mean(rows, own) - _mean(rows, released)):+.2f}"
