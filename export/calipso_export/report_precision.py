"""What the report says of precision: how it was chosen, calibrated and repaired, and each layer's error."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from calipso_export.report_table import table
from calipso_runtime.manifest import Manifest

_WIDTH, _HEIGHT, _RADIUS = 520, 220, 5
_MEGABYTE = 1e6


def precision_section(manifest: Manifest, parity: Mapping[str, Any]) -> str:
    """Everything about a bundle's precision; empty for plain fp32."""
    document = manifest.graph.get("precision", {})
    parts = [
        _calibration(document.get("calibration") or {}),
        _kept(document.get("kept_in_fp32") or []),
        _repair(parity.get("repair") or {}),
        frontier(parity.get("frontier") or []),
    ]
    body = "".join(part for part in parts if part)
    return f"<h2>Precision: {escape(manifest.precision)}</h2>{body}" if body else ""


def _calibration(calibration: Mapping[str, Any]) -> str:
    if not calibration:
        return ""
    methods = calibration["methods"]
    rows = [
        (name, f"{error:.2e}", "chosen" if name == methods["chosen"] else "")
        for name, error in methods["mean_relative_logit_error"].items()
    ]
    return (
        f"<p>Ranges of activations measured on {calibration['pictures']} pictures of {escape(calibration['source'])}; "
        f"the way of cutting them chosen on {calibration['chosen_on']} others (seed {calibration['seed']}).</p>"
        + table(("ranges", "mean relative logit error", ""), rows)
    )


def _kept(kept: Sequence[Mapping[str, str]]) -> str:
    if not kept:
        return ""
    return "<h3>Kept in fp32</h3>" + table(("node", "why"), [(each["node"], each["why"]) for each in kept])


def _repair(repair: Mapping[str, Any]) -> str:
    if not repair:
        return ""
    rows = [
        (each["node"], each["reason"], number(each["error_before"]), number(each["error_after"]))
        for each in repair["pinned"]
    ]
    what = f"<h3>Repair</h3><p>{repair['trials']} graphs were tried; {escape(repair['ended'])}.</p>"
    return what + (table(("node", "why it is pinned", "error before", "error after"), rows) if rows else "")


def frontier(points: Sequence[Mapping[str, Any]]) -> str:
    """A table and a plot of accuracy over the time of one picture, against fp32."""
    tried = [point for point in points if point["bytes"] is not None]
    if not tried:
        return ""
    refused = [(point["precision"], "; ".join(point["failures"]), *[""] * 5) for point in points if point not in tried]
    rows = [
        (
            point["precision"],
            "; ".join(point["failures"]) or "passed",
            f"{point['bytes'] / _MEGABYTE:.1f}",
            f"{point['cpu_time_to_fp32']:.2f}",
            f"{point['same_top1']:.2%}",
            f"{point['top1']:.2%}",
            f"{100 * point['drop']:.2f}",
        )
        for point in tried
    ]
    columns = ("precision", "gates", "MB", "CPU time to fp32", "same top class", "top-1", "points lost")
    return "<h3>Tried, fastest first</h3>" + table(columns, [*rows, *refused]) + _scatter(tried)


def _scatter(points: Sequence[Mapping[str, Any]]) -> str:
    times, tops = [point["cpu_time_to_fp32"] for point in points], [point["top1"] for point in points]
    low, high = min(tops), max(tops)
    span, most = (high - low) or 1.0, max(*times, 1.0)
    marks = []
    for point, x, y in zip(points, times, tops, strict=True):
        left, top = x / most * _WIDTH, _HEIGHT - (y - low) / span * _HEIGHT
        colour = "#b00020" if point["failures"] else "#06752f"
        marks.append(
            f"<circle cx={left:.1f} cy={top:.1f} r={_RADIUS} fill='{colour}' />"
            f"<text x={left + 2 * _RADIUS:.1f} y={top + _RADIUS:.1f} font-size=13>{escape(point['precision'])}</text>"
        )
    return (
        f"<svg viewBox='-10 -15 {_WIDTH + 110} {_HEIGHT + 30}' width={_WIDTH + 100} role=img>{''.join(marks)}</svg>"
        f"<p>Across: time of one picture on this CPU, from 0 to {most:.2f} of fp32's. Up: top-1, from {low:.2%} to "
        f"{high:.2%}. Green passed its gates.</p>"
    )


def layer_plot(errors: Sequence[tuple[str, float, float]]) -> str:
    """Errors along the graph: (name, added up, alone) of each node, on a logarithmic scale."""
    finite = [value for _, *both in errors for value in both if 0 < value < math.inf]
    if not finite:
        return ""
    low, high = math.log10(min(finite)), math.log10(max(finite))
    span = (high - low) or 1.0

    def line(values: Sequence[float], colour: str) -> str:
        points = " ".join(
            f"{place / max(1, len(values) - 1) * _WIDTH:.1f},{_HEIGHT - (math.log10(value) - low) / span * _HEIGHT:.1f}"
            for place, value in enumerate(values)
            if 0 < value < math.inf
        )
        return f"<polyline points='{points}' fill=none stroke='{colour}' stroke-width=1.5 />"

    return (
        f"<svg viewBox='-10 -10 {_WIDTH + 20} {_HEIGHT + 20}' width={2 * _WIDTH} role=img>"
        + line([added for _, added, _ in errors], "#0b57d0")
        + line([alone for _, _, alone in errors], "#b35900")
        + "</svg>"
        f"<p>Relative error of each node's output, first to last, from {10**low:.1e} to {10**high:.1e}. Blue: as it "
        "has added up. Orange: what the node adds alone. Gaps are exact or not finite.</p>"
    )


def number(value: float | str) -> str:
    """An error; infinite ones are words in JSON."""
    return f"{float(value):.1e}"
