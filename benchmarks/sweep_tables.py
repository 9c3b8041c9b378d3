"""The table of every configuration that open_clip lists, from results/sweep.json."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import RESULTS
from calipso_bench.markdown import table
from calipso_export.clip import open_clip

Row = Mapping[str, Any]
_MILLION = 1e6
_COLUMNS = (
    "configuration",
    "family",
    "exported",
    "CALIP",
    "text tower",
    "open graph",
    "parameters",
    "image",
    "worst relative error",
    "nodes",
)
_WORDS = 6


def models_table() -> str:
    """How many export, one line each, and the reasons of what does not."""
    rows = {row["model"]: row for row in json.loads((RESULTS / "sweep.json").read_text(encoding="utf-8"))["rows"]}
    names = open_clip.list_models()
    reasons = Reasons()
    lines = [_line(name, rows.get(name), reasons) for name in names]
    return f"{_summary(names, rows)}\n{table(_COLUMNS, lines, words=_WORDS)}\n{reasons.listed()}"


class Reasons:
    """Reasons, each told once, under a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, reason: str) -> str:
        """What stands in a cell."""
        return f"no ({self._numbers.setdefault(reason, len(self._numbers) + 1)})"

    def listed(self) -> str:
        """All of them."""
        return "".join(f"{number}. {reason}\n" for reason, number in self._numbers.items())


def _summary(names: Iterable[str], rows: Mapping[str, Row]) -> str:
    names = list(names)
    found = [rows[name] for name in names if name in rows]
    exported = [row for row in found if row["status"] == "exported"]
    both = [row for row in exported if row["why_no_text"] is None]
    whole = [row for row in exported if row["layers"] is None]
    worst = max(max(row["worst"].values()) for row in exported)
    missing = len(names) - len(found)
    left = f" {missing} were not swept yet." if missing else ""
    return (
        f"Of {len(names)} configurations {len(exported)} ({len(exported) / len(names):.1%}) export and agree with "
        f"open_clip in fp32, the worst by {worst:.1e}.\n{len(both)} of them have both towers in one graph; "
        f"{len(whole)} were swept in full, the others with as many layers as the table says.{left}\n"
    )


def _line(name: str, row: Row | None, reasons: Reasons) -> tuple[str, ...]:
    if row is None:
        return (name, "", "not swept yet", *[""] * (len(_COLUMNS) - 3))
    sizes = (f"{row['parameters'] / _MILLION:.0f} M{'' if row['needs'] is None else ' (image)'}", _pixels(row))
    if row["status"] in ("refused", "broken"):
        return (name, row["trunk"], reasons(row["reason"]), "", "", "", *sizes, "", "")
    agrees = row["status"] == "exported"
    layers = "" if row["layers"] is None else f", {row['layers']} layers"
    text = "yes" if row["why_no_text"] is None else reasons(_about_text(row))
    return (
        name,
        row["family"],
        f"yes{layers}" if agrees else reasons(row["reason"]),
        "yes" if row["why_no_calip"] is None else reasons(row["why_no_calip"]),
        text,
        text,
        *sizes,
        f"{max(row['worst'].values()):.1e}",
        str(row["nodes"]),
    )


def _pixels(row: Row) -> str:
    height, width = row["image_size"]
    return str(height) if height == width else f"{height} x {width}"


def _about_text(row: Row) -> str:
    return (
        f"the text tower is built from config.json of {row['needs']} on the Hugging Face hub: download it and give its "
        "folder with --text-model; or give text features with --text-weights"
    )
