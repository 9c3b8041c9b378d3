"""The tables of hosts, from results/hosts.json and throughput.json: every number is derived from raw samples."""

import json
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks import RESULTS
from calipso_bench.markdown import table

# Every host is asked in turns with it.
REFERENCE = "Python"
_COLUMNS = ("host", "top-1 as eager PyTorch", "worst logit error", "median ms", "time of Python's")
_THROUGHPUT = ("host", "at once", *_COLUMNS[1:3], "pictures a second", "of one process's", "start and end, s")
# Of all cores, below which a machine is taken to be at our disposal.
_QUIET_PERCENT = 10


def hosts_table() -> str:
    """What each host answers, and how long it takes."""
    rows = _rows("hosts.json")
    measured = [row for row in rows if "reason" not in row]
    # One run may have measured all of them, or one each.
    photographs = sorted({row["photographs"] for row in measured})
    rounds = sorted({len(row["samples_ms"]) for row in measured})
    return (
        f"{table(_COLUMNS, [_cells(row) for row in rows])}\n{_reasons(rows)}"
        f"The shipped model, {_listed(photographs)} photographs; one thread of {_machines(measured)}. Times "
        "are from a file to its\nlogits, every tenth photograph, in turns with Python; the ratio is the median of "
        f"{_listed(rounds)} rounds' ratios of medians,\nwith the lowest and the highest.{_busy(measured)}\n"
    )


def throughput_table() -> str:
    """How many pictures a second workers and clients get answered."""
    rows = _rows("throughput.json")
    measured = [row for row in rows if "reason" not in row]
    pictures, rounds = sorted({row["pictures"] for row in measured}), sorted({len(row["seconds"]) for row in measured})
    photographs = sorted({row["photographs"] for row in measured})
    alone = [row["pictures"] / seconds for row in measured if _is_timed(row) for seconds in row["process_seconds"]]
    process = (
        "Python",
        "1 process",
        "",
        "",
        f"{statistics.median(alone):.0f}" if alone else "-",
        "1" if alone else "-",
        "-",
    )
    return (
        f"{table(_THROUGHPUT, [process, *(_throughput_cells(row) for row in rows)], words=2)}\n{_reasons(rows)}"
        f"{_untimed(measured)}"
        f"The same model and one thread for each worker and server, on {_machines(measured)}, which clients and Ray's\n"
        f"own processes share. {_listed(pictures)} pictures a round ({_listed(photographs)} photographs, repeated), in "
        f"turns with one Python process;\nthe median of {_listed(rounds)} rounds, with the lowest and the highest.\n"
    )


def gains(row: Mapping[str, Any]) -> list[float]:
    """Of each round: the host's pictures a second over one process's, without its start and end."""
    return [process / own for own, process in zip(row["seconds"], row["process_seconds"], strict=True)]


def ratios(row: Mapping[str, Any]) -> list[float]:
    """Of each round: the host's median over Python's."""
    pairs = zip(row["samples_ms"], row["python_ms"], strict=True)
    return [statistics.median(own) / statistics.median(python) for own, python in pairs]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "reason" in row:
        return (row["host"], *["-"] * (len(_COLUMNS) - 1))
    spread = _spread(ratios(row))
    return (
        row["host"],
        f"{row['agreement']:.2%}",
        f"{row['relative_logit_error']:.1e}",
        f"{statistics.median(sample for samples in row['samples_ms'] for sample in samples):.1f}",
        "1" if row["host"] == REFERENCE else spread,
    )


def _throughput_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "reason" in row:
        return (row["host"], *["-"] * (len(_THROUGHPUT) - 1))
    known = (row["host"], row["at_once"], f"{row['agreement']:.2%}", f"{row['relative_logit_error']:.1e}")
    if not _is_timed(row):
        return (*known, *["-"] * (len(_THROUGHPUT) - len(known)))
    return (
        *known,
        f"{row['pictures'] / statistics.median(row['seconds']):.0f}",
        _spread(gains(row)),
        f"{statistics.median(row['apart_s']):.1f}" if any(row["apart_s"]) else "-",
    )


def _is_timed(row: Mapping[str, Any]) -> bool:
    """Whether its times say something: beside other work, many get the cores that are left, not those they need."""
    return bool(row["busy_percent"] < _QUIET_PERCENT)


def _rows(name: str) -> list[dict[str, Any]]:
    document = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def _reasons(rows: list[dict[str, Any]]) -> str:
    return "".join(f"- {row['host']}: not measured, {row['reason']}.\n" for row in rows if "reason" in row)


def _untimed(measured: list[dict[str, Any]]) -> str:
    busy = [row for row in measured if not _is_timed(row)]
    if not busy:
        return ""
    told = ", ".join(f"{row['host']} ({row['at_once']})" for row in busy)
    least = min(row["busy_percent"] for row in busy)
    return f"- Not timed, as other work kept at least {least:.0f}% of the machine busy: {told}.\n"


def _machines(measured: list[dict[str, Any]]) -> str:
    return " and ".join(
        sorted({f"{row['environment']['cpu']}, {row['environment']['cores']} cores" for row in measured})
    )


def _busy(measured: list[dict[str, Any]]) -> str:
    """Whether something else ran beside."""
    most = max(row["busy_percent"] for row in measured)
    return "" if most < _QUIET_PERCENT else f" Other work kept up to {most:.0f}% of the machine busy."


def _spread(found: list[float]) -> str:
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def _listed(values: list[int]) -> str:
    return " or ".join(map(str, values))
