"""Frontier: what each precision that was tried costs and keeps, for the report."""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from calipso_export.models import LoadedModel
from calipso_export.parity import Parity
from calipso_export.precision import PRECISIONS
from calipso_export.precision.lower import lower
from calipso_export.precision.run import answering
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.steps.lower import Lowering
from calipso_export.steps.optimise import Optimised
from calipso_export.steps.write import Graph

_SECONDS, _FEWEST_ROUNDS = 2.0, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frontier:
    """One point for each precision tried, in order; empty where one was asked for."""

    points: tuple[dict[str, Any], ...] = ()


def measure(made: Made, progress: Progress) -> dict[str, Any]:
    """The graph just attempted: its size, speed on this CPU, answers and accuracy."""
    lowering, parity = made[Lowering], made[Parity]
    what = f"timing {lowering.precision.name}"
    progress(what, 0, 1)
    accuracy = parity.document.get("accuracy", {})
    point = {
        "precision": lowering.precision.name,
        "passed": not parity.failures,
        "failures": list(parity.failures),
        "bytes": _bytes(made[Graph].path) + _bytes(made[Graph].ort_path),
        "cpu_time_to_fp32": _time_to_fp32(made),
        "same_top1": parity.document["worst"]["same_top1"],
        "embedding_cosine": parity.document["worst"]["embedding_cosine"],
        "top1": accuracy.get("shipped", {}).get("top1"),
        "drop": accuracy.get("drop"),
        "drop_interval_95": accuracy.get("drop_interval_95"),
        "pinned": len(lowering.pinned),
    }
    progress(what, 1, 1)
    return point


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _time_to_fp32(made: Made) -> float:
    """Median ratio of one picture's time to that of the fp32 graph, in turns, on ONNX Runtime's CPU graphs."""
    lowering = made[Lowering]
    if lowering.precision.name == "fp32":
        return 1.0
    plain = lower(made[Optimised].portable, PRECISIONS["fp32"], ranges=None)
    image = np.zeros((1, 3, *made[LoadedModel].preprocess.size), np.float32)
    ratios: list[float] = []
    with answering(plain.ort) as first, answering(lowering.graphs.ort) as second:
        first(image), second(image)
        ended = time.perf_counter() + _SECONDS
        while len(ratios) < _FEWEST_ROUNDS or time.perf_counter() < ended:
            start = time.perf_counter()
            first(image)
            middle = time.perf_counter()
            second(image)
            ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios)
