"""The table of hosts, from results/hosts.json: every number is derived from raw samples."""

import json
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks import RESULTS
from calipso_bench.markdown import table

# Every host is asked in turns with it.
REFERENCE = "Python"
_COLUMNS = ("host", "top-1 as eager PyTorch", "worst logit error", "median ms", "time of Python's")


def hosts_table() -> str:
    """What each host answers, and how long it takes."""
    document = json.loads((RESULTS / "hosts.json").read_text(encoding="utf-8"))
    rows = document["rows"]
    measured = [row for row in rows if "reason" not in row]
    reasons = "".join(f"- {row['host']}: not measured, {row['reason']}.\n" for row in rows if "reason" in row)
    # One run may have measured all of them, or one each.
    machines = {f"{row['environment']['cpu']}, {row['environment']['cores']} cores" for row in measured}
    photographs = sorted({row["photographs"] for row in measured})
    rounds = sorted({len(row["samples_ms"]) for row in measured})
    return (
        f"{table(_COLUMNS, [_cells(row) for row in rows])}\n{reasons}"
        f"The shipped model, {_listed(photographs)} photographs; one thread of {' and '.join(sorted(machines))}. Times "
        "are from a file to its\nlogits, every tenth photograph, in turns with Python; the ratio is the median of "
        f"{_listed(rounds)} rounds' ratios of medians,\nwith the lowest and the highest.\n"
    )


def ratios(row: Mapping[str, Any]) -> list[float]:
    """Of each round: the host's median over Python's."""
    pairs = zip(row["samples_ms"], row["python_ms"], strict=True)
    return [statistics.median(own) / statistics.median(python) for own, python in pairs]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "reason" in row:
        return (row["host"], *["-"] * (len(_COLUMNS) - 1))
    found = ratios(row)
    spread = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
    return (
        row["host"],
        f"{row['agreement']:.2%}",
        f"{row['relative_logit_error']:.1e}",
        f"{statistics.median(sample for samples in row['samples_ms'] for sample in samples):.1f}",
        "1" if row["host"] == REFERENCE else spread,
    )


def _listed(values: list[int]) -> str:
    return " or ".join(map(str, values))
