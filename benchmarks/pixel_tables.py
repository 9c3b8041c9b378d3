"""The tables of raw pixels, from results/pixels.json."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import RESULTS
from calipso_bench.markdown import table

Line = Mapping[str, Any]
_BASE = "Pillow"
_ANSWERS = (
    *("pictures", "mode", "number", "same top class", "top-1 of eager", "shipped"),
    *("median logit error", "worst"),
)


def pixels_table() -> str:
    """Levels of both forms, answers on drawn pictures, and times from JPEG bytes to label."""
    document = json.loads((RESULTS / "pixels.json").read_text(encoding="utf-8"))
    levels = [(row["pictures"], row["mode"], *_form(row["op"]), *_form(row["matmul"])) for row in document["levels"]]
    answers = [_answer(row) for row in document["answers"]]
    names = list(next(iter(document["samples_ms"].values())))
    times = [(size, *(_time(samples, name) for name in names)) for size, samples in document["samples_ms"].items()]
    form = ("pictures", "most levels off", "values equal")
    columns = ("pictures", "mode", *(f"`{name}`: {each}" for name in ("op", "matmul") for each in form))
    parts = [
        "Levels against Pillow's, 224 x 224, bicubic:\n",
        table(columns, levels),
        (
            "`matmul`: the first 200 of up to a megapixel, a graph each. With `longest` nothing is left of the longest "
            "noise.\n\nThe shipped model, `op` against eager PyTorch:\n"
        ),
        table(_ANSWERS, answers) + _flips(document["answers"]),
        (
            f"JPEG bytes to label, {document['model']} with random weights, one thread, batch 1, in turns: "
            "median ms, and its ratio to Pillow with a graph of prepared images:\n"
        ),
        table(("picture", *(_BASE if name == _BASE else f"in the {name}" for name in names)), times),
    ]
    return "\n".join(parts)


def _answer(row: Line) -> tuple[str, ...]:
    top1 = [f"{row[name]:.2%}" if name in row else "-" for name in ("eager", "shipped")]
    errors = [f"{row[name]:.1e}" for name in ("median_logit_error", "relative_logit_error")]
    return (row["what"], row["mode"], str(row["pictures"]), f"{row['same_top1']:.2%}", *top1, *errors)


def _flips(rows: Sequence[Line]) -> str:
    """How near the classes are that stand in each other's place."""
    margins = [margin for row in rows for margin in row.get("flip_margins", ())]
    if not margins:
        return ""
    return (
        f"\nThe classes that changed places ({len(margins)} pictures) are at most {max(margins):.1e} of the largest "
        "logit apart in eager PyTorch.\n"
    )


def _form(row: Line) -> tuple[str, str, str]:
    return str(row["pictures"]), str(row["most"]), f"{1 - row['different'] / row['values']:.4%}"


def _time(samples: Mapping[str, list[float]], name: str) -> str:
    median, base = statistics.median(samples[name]), statistics.median(samples[_BASE])
    return f"{median:.1f}" if name == _BASE else f"{median:.1f} ({median / base:.2f})"
