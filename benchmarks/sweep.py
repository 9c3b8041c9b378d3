"""Exports every configuration that open_clip lists, with random weights, and holds the files against open_clip.

    python -m benchmarks.sweep [--only GLOB ...] [--layers 2] [--memory-gb 20] [--jobs 1] [--minutes 600]

Each is a process of its own: both towers in one graph where there is a text tower, the image tower alone where that one
needs files of a hub, spatial tokens where CALIP is defined; written, run by ONNX Runtime on batches of 1, 2 and 5, and
compared with open_clip's own `encode_image`, `encode_text` and logits. Where the whole model would take more than the
memory given, or with --layers, it has fewer layers of the same widths, and the result says so. Results go to
results/sweep.json after each; what is there in full is not done again, what has fewer layers is where the whole fits.
"""

import argparse
import dataclasses
import fnmatch
import functools
import importlib
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import RESULTS, keep
from benchmarks.sweep_models import FEWEST_LAYERS, Listed, described
from calipso_bench.environment import commit, environment
from calipso_export.clip import open_clip
from calipso_export.steps.write import MAX_EMBEDDED_BYTES
from calipso_runtime.commands.progress_bars import progress_bars

# Measured. ONNX Runtime has them once as the file's pages and once packed for its products; a file that has them in
# itself is held several times over while it is written.
_TIMES_THE_WEIGHTS, _TIMES_EMBEDDED_WEIGHTS = 2.25, 3.5
BYTES, _GB = 4, 1e9
_OWN_GB = 0.5
_MOST_S = 3600


def peak_bytes(model: Listed) -> float:
    """The most memory that exporting and comparing one takes, but for what Python and its libraries take."""
    weights = BYTES * model.parameters
    return weights * (_TIMES_EMBEDDED_WEIGHTS if weights <= MAX_EMBEDDED_BYTES else _TIMES_THE_WEIGHTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is done to every configuration.

    Attributes:
        what: about the results, in words.
        result: the file of results.
        module: has `swept(name, layers)`, which gives a row.
        peak_bytes: the most memory that one takes.
    """

    what: str
    result: Path
    module: str
    peak_bytes: Callable[[Listed], float]


COMPARED = Sweep(
    what="every configuration that open_clip lists: random weights, exported, run by ONNX Runtime and compared",
    result=RESULTS / "sweep.json",
    module="benchmarks.sweep_one",
    peak_bytes=peak_bytes,
)


def main(sweep: Sweep = COMPARED, about: str | None = __doc__) -> int:
    """Sweep, one process each, and keep every result as it comes."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0] if about else None)
    parser.add_argument("--only", nargs="+", default=["*"], help="Names of models, or patterns of them.")
    parser.add_argument("--layers", type=int, help="Of every model, instead of all.")
    parser.add_argument("--memory-gb", type=float, default=20.0, help="Models that would take more get fewer layers.")
    parser.add_argument("--minutes", type=float, help="Begin no other model after so long; the next run goes on.")
    parser.add_argument("--again", action="store_true", help="Do again what is there already.")
    parser.add_argument("--jobs", type=int, default=1, help="Models at a time; the memory is for each.")
    parser.add_argument("--output", type=Path, default=sweep.result)
    # open_clip tells at every model that it has no weights.
    logging.disable(logging.WARNING)
    return run(sweep, parser.parse_args())


def run(sweep: Sweep, arguments: argparse.Namespace) -> int:
    """All that is asked for and not done; smallest first, so that the time given is worth most."""
    names = open_clip.list_models()
    wanted = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in arguments.only)]
    if not wanted:
        sys.exit(f"no model of open_clip is named like {', '.join(arguments.only)}")
    path = arguments.output
    rows = read(path)
    jobs = [
        (each, layers)
        for each in sorted(map(described, wanted), key=lambda each: (each.parameters, each.name))
        for layers in [arguments.layers or layers_within(sweep.peak_bytes(each), arguments.memory_gb)]
        if arguments.again or not is_done(rows.get(each.name), layers)
    ]
    # Each process begins with everything imported.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([sweep.module])
    ends = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    calls = [functools.partial(one, context, each, layers, module=sweep.module) for each, layers in jobs]
    done = 0
    with progress_bars(Console(stderr=True)) as progress:
        progress("models", 0, len(jobs))
        for row in in_time(calls, arguments.jobs, ends):
            rows[row["model"]] = row
            write(path, sweep.what, [rows[name] for name in names if name in rows])
            done += 1
            progress("models", done, len(jobs))
    if done < len(jobs):
        print(f"{len(jobs) - done} models are left: run it again to go on", file=sys.stderr)
    return 0


def in_time(
    calls: Sequence[Callable[[], dict[str, Any]]], at_once: int, ends: float | None
) -> Iterator[dict[str, Any]]:
    """Results as they come; no call begins after `ends`, and none that has not begun when this is left."""

    def unless_late(call: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        return None if ends is not None and time.monotonic() > ends else call()

    pool = ThreadPoolExecutor(at_once)
    try:
        for future in as_completed([pool.submit(unless_late, call) for call in calls]):
            if (row := future.result()) is not None:
                yield row
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def layers_within(peak: float, gigabytes: float) -> int | None:
    """None for all of them, where these fit."""
    return None if peak / _GB + _OWN_GB <= gigabytes else FEWEST_LAYERS


def is_done(row: Mapping[str, Any] | None, layers: int | None) -> bool:
    """Whether this result stands: all layers are better than fewer; what broke off is done again."""
    return row is not None and row["status"] != "broken" and (row["layers"] is None or row["layers"] == layers)


def one(context: Any, model: Listed, layers: int | None, *, module: str = COMPARED.module) -> dict[str, Any]:
    """The result of one model, in a process of its own; of one that broke off, why."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_sweep, args=(theirs, module, model.name, layers), daemon=True)
    process.start()
    theirs.close()
    row = {**model.as_json(), "layers": layers, "commit": commit()}
    try:
        if not ours.poll(_MOST_S):
            return {**row, "status": "broken", "reason": f"it took more than {_MOST_S} s"}
        return {**row, **ours.recv()}
    except EOFError:
        process.join()
        return {**row, "status": "broken", "reason": f"its process ended with {process.exitcode}: out of memory?"}
    finally:
        process.kill()
        process.join()


def _sweep(connection: Connection, module: str, name: str, layers: int | None) -> None:
    # Read when it is imported: a hub that is asked in vain is asked again and again.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    swept = importlib.import_module(module).swept
    logging.disable(logging.WARNING)
    try:
        connection.send(swept(name, layers))
    except Exception as error:  # noqa: BLE001  whatever a library raises: the next model may be none the worse
        reason = (str(error).splitlines() or [""])[0]
        connection.send({"status": "broken", "reason": f"{type(error).__name__}: {reason}"})


def read(path: Path) -> dict[str, Any]:
    """Earlier results by model."""
    if not path.is_file():
        return {}
    return {row["model"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def write(path: Path, what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """All results, in open_clip's order; complete or not at all."""
    keep(path, {"schema_version": 1, "what": what, "environment": environment(), "rows": rows}, indent=1)


if __name__ == "__main__":
    sys.exit(main())
