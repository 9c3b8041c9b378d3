"""The table of what TensorRT for RTX makes of every configuration that open_clip lists, from results/sweep-rtx.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import RESULTS
from benchmarks.sweep_compile_one import NAMES
from benchmarks.sweep_tables import Reasons
from calipso_bench.markdown import table
from calipso_export.clip import open_clip
from calipso_runtime.engines.families import capabilities_of, sm

Row = Mapping[str, Any]
_MB = 1e6
# fp32 and int8 have no kernel of fused attention: what they fuse is chance.
_FUSABLE = ("fp16", "fp8")
_COLUMNS = (
    "configuration",
    "swept",
    "parses",
    "builds for",
    "attention fused, fp16",
    "fp8",
    *(f"plan, MB, {NAMES[0]}", *NAMES[1:]),
    *(f"build, s, {NAMES[0]}", *NAMES[1:]),
)
_WORDS = 6


def compiled_table() -> str:
    """How many compile, one line each, and the reasons of what does not."""
    document = json.loads((RESULTS / "sweep-rtx.json").read_text(encoding="utf-8"))
    rows = {row["model"]: row for row in document["rows"]}
    names = open_clip.list_models()
    reasons = Reasons()
    lines = [_line(name, rows.get(name), reasons) for name in names]
    found = [rows[name] for name in names if name in rows]
    return f"{_summary(names, found, document)}\n{table(_COLUMNS, lines, words=_WORDS)}\n{reasons.listed()}"


def _summary(names: Sequence[str], found: Sequence[Row], document: Mapping[str, Any]) -> str:
    count, whole = len(found), sum(row["layers"] is None for row in found)
    built = {name: sum("plan_bytes" in row.get("precisions", {}).get(name, {}) for row in found) for name in NAMES}
    compilers = {each["compiler"] for row in found for each in row.get("precisions", {}).values() if "compiler" in each}
    missing = len(names) - count
    left = f" {missing} of {len(names)} were not compiled yet." if missing else ""
    counts = ", ".join(f"{built[name]} in {name}" for name in NAMES)
    where = f"{_all(None)}, for fp8 {_all('fp8')}"
    return (
        f"Of {count} configurations TensorRT for RTX {', '.join(sorted(compilers))} builds {counts}. {whole} were\n"
        f'compiled in full, the others with as many layers as the table says.{left} Builds for "all" means\n{where}. '
        f"On {document['environment']['cpu']}, beside other work:\nbuild times tell the order of magnitude alone.\n"
    )


def _all(precision: str | None) -> str:
    return ", ".join(map(sm, capabilities_of(None, precision or NAMES[0])))


def _line(name: str, row: Row | None, reasons: Reasons) -> tuple[str, ...]:
    if row is None:
        return (name, "not yet", *[""] * (len(_COLUMNS) - 2))
    swept = "in full" if row["layers"] is None else f"{row['layers']} layers"
    if "precisions" not in row:
        return (name, swept, reasons(row["reason"]), *[""] * (len(_COLUMNS) - 3))
    each = row["precisions"]
    unread = [precision for precision in NAMES if not each[precision]["parses"]]
    return (
        name,
        swept,
        "yes" if not unread else f"not {', '.join(unread)}",
        _builds(each, reasons),
        *(_fused(each[precision]) for precision in _FUSABLE),
        *(_number(each[precision].get("plan_bytes"), _MB, 0) for precision in NAMES),
        *(_number(each[precision].get("build_seconds"), 1, 1) for precision in NAMES),
    )


def _builds(each: Mapping[str, Row], reasons: Reasons) -> str:
    """Which precisions are refused, and what those build for all the same."""
    refused = {name: row for name, row in each.items() if "refused" in row}
    if not refused:
        return "all"
    return "; ".join(
        f"{name}: {', '.join(row['builds_for']) or reasons(row['refused'])}" for name, row in refused.items()
    )


def _fused(row: Row) -> str:
    # Of a block in a layer that stands for several kernels nothing is known: it does not count as fused.
    blocks = sum(row.get(kind, 0) for kind in ("fused", "unfused", "untold"))
    return f"{row['fused']} of {blocks}" if blocks else "-"


def _number(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"
