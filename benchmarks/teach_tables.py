"""The tables of heads as inputs and of teaching, from results/teach.json: every number is derived from raw samples."""

import json
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import RESULTS
from benchmarks.teach import PHOTOS, turns
from calipso_bench.cells import threads_in_words
from calipso_bench.markdown import table
from calipso_bench.stats import median_interval

Cell = Mapping[str, Any]
# What a head as an input may cost more than a baked one.
MOST = 1.03
_MIB = 2**20
_LATENCY = ("backend", "batch", "baked ms", "inputs / baked", "rounds", "largest logit difference")
_SIZES = ("classes", "keys each", "MiB", "head ms", "of the encoder", "teaching s")


def teach_table() -> str:
    """A head as an input against a baked one, and what heads cost over classes and keys."""
    document = json.loads((RESULTS / "teach.json").read_text(encoding="utf-8"))
    machine, first = document["environment"], document["latency"][0]
    packages = machine["packages"]
    return (
        f"{document['model']}, fp32, {threads_in_words(document['threads'])} of {machine['cpu']} with "
        f"{machine['cores']} cores; onnxruntime {packages['onnxruntime']}, openvino {packages['openvino']}. Random "
        "weights\nand made-up heads. Calls in turns, a few of each contender a round; medians of rounds, 95 % "
        "bootstrap intervals.\n\n"
        f"{first['classes']:,} classes of {first['shots']} keys, as inputs of the graph and baked:\n\n"
        f"{table(_LATENCY, [_latency(cell) for cell in document['latency']])}\n{_verdict(document['latency'])}\n"
        "What a head as an input takes more than one of two keys, one picture at a time on ONNX Runtime, and how long "
        f"teaching a\nclass of {PHOTOS} photos takes once they are encoded, alpha and beta chosen anew (median, and "
        f"the range):\n\n{table(_SIZES, [_size(cell) for cell in document['sizes']])}"
    )


def _ratios(cell: Cell) -> list[float]:
    samples = cell["samples_ms"]
    return [float(ratio) for ratio in turns(samples["inputs"]) / turns(samples["baked"])]


def _latency(cell: Cell) -> tuple[str, ...]:
    ratios = _ratios(cell)
    return (
        cell["backend"],
        str(cell["batch"]),
        f"{statistics.median(cell['samples_ms']['baked']):.1f}",
        _interval(ratios, 3),
        str(len(ratios)),
        f"{cell['largest_logit_difference']:.0e}",
    )


def _verdict(cells: list[Cell]) -> str:
    """Where the cost is within bounds, where it is beyond them, and where that is open."""
    percent = f"{100 * (MOST - 1):.0f} %"
    found = {f"{cell['backend']} batch {cell['batch']}": median_interval(_ratios(cell)) for cell in cells}
    within = [name for name, (_, high) in found.items() if high <= MOST]
    beyond = [name for name, (low, _) in found.items() if low > MOST]
    unclear = [name for name in found if name not in (*within, *beyond)]
    text = f"At most {percent} more, the whole interval, in {len(within)} of {len(found)} cells."
    text += f" Too close to call: {', '.join(unclear)}." if unclear else ""
    return text + (f" More: {', '.join(beyond)}.\n" if beyond else "\n")


def _size(cell: Cell) -> tuple[str, ...]:
    samples = cell["samples_ms"]
    least = turns(samples["least"])
    added = turns(samples["head"]) - least
    taught = cell["teach_s"]
    return (
        f"{cell['classes']:,}",
        str(cell["shots"]),
        f"{cell['bytes'] / _MIB:.1f}",
        _interval(added.tolist(), 2),
        f"{100 * float(np.median(added)) / float(np.median(least)):.1f} %",
        f"{statistics.median(taught):.2g} ({min(taught):.2g} to {max(taught):.2g})",
    )


def _interval(samples: list[float], digits: int) -> str:
    low, high = median_interval(samples)
    return f"{statistics.median(samples):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
