"""Classifies a folder or Parquet of pictures on a Ray cluster, into Parquet; interrupted, it goes on where it stopped.

    python examples/ray_batch.py animals.calipso photos -o answers
    python examples/ray_batch.py animals.calipso pictures.parquet --column bytes -o answers --gpus-per-worker 1

The input is cut into shards: a folder's sorted paths, so many at a time, or Parquet's row groups. Ray Data gives
them to a pool of actors, each with the bundle loaded; an actor writes a shard's answers under a name of its own and
renames the file when it is complete. So a shard is done or not there, whatever is killed, and doing one again changes
nothing. `Dataset.write_parquet` would name its files by the run, which is why a second run could not tell what is done.

Columns of the answers: `image` (path below the folder; of Parquet PATH#ROW), `label`, `probability`, `labels`,
`probabilities`, `logits` (the best `--top`, best first), and `error`, which is null where there is an answer.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import calipso_runtime
from calipso_runtime import bundle
from calipso_runtime.commands.collect import collect
from calipso_runtime.errors import CalipsoError, ImageError, OutputPathError, UsageError
from calipso_runtime.head.file import manifest_of, refuse_labels

# Readers of a folder of Parquet leave out names that begin like this, and with a point.
JOB_FILE = "_job.json"
# A Parquet file ends with its footer's length and a mark, of 4 bytes each.
_PARQUET, _END = ".parquet", 8
# Ray replaces a worker that dies, and has its shard done again, without end: a picture that kills it needs one.
_TRIES = 5
_FLOATS, _TEXTS = pa.list_(pa.float32()), pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("labels", _TEXTS),
        ("probabilities", _FLOATS),
        ("logits", _FLOATS),
        ("error", pa.string()),
    ]
)


class Shard(TypedDict):
    """Pictures that are answered into one file: `paths` below `root`, or a `row_group` of the one Parquet file."""

    name: str
    root: str
    paths: list[str]
    row_group: int
    pictures: int


def main() -> int:
    """Run the job; 0 if every picture has a row, readable or not."""
    arguments = _arguments()
    console = Console(stderr=True)
    try:
        shards = _shards(arguments.input, arguments.shard, arguments.column)
        _claim(arguments.output, _job(arguments, shards))
        started = time.perf_counter()
        working = _work(shards, arguments, console)
        _sweep(arguments.output)
        seconds = {"seconds": round(time.perf_counter() - started, 3), "working_seconds": round(working, 3)}
        summary = {**seconds, **_summary(arguments.output, shards)}
    except CalipsoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except RayError as error:
        print(f"error: a worker failed; the same command goes on from here. {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("input", type=Path, help="a folder of pictures, or a .parquet file, or a folder of those")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--column", default="image", help="of Parquet: the files' bytes, or their paths")
    parser.add_argument("--top", type=_positive, default=5)
    parser.add_argument("--batch", type=_positive, default=32, help="pictures computed together")
    parser.add_argument("--shard", type=_positive, default=1000, help="pictures of a folder that are one file")
    parser.add_argument("--workers", type=_positive, help="actors [default: one per CPU of the cluster]")
    parser.add_argument("--threads", type=_positive, default=1, help="CPUs of a worker")
    parser.add_argument("--gpus-per-worker", type=float, default=0.0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--address", help="of a Ray cluster [default: one on this machine, for the job alone]")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        message = f"{text} is not above 0"
        raise argparse.ArgumentTypeError(message)
    return value


def _shards(source: Path, size: int, column: str) -> list[Shard]:
    """The input, cut up; the same whenever it is the same.

    Raises:
        UsageError: there is no picture, or not the column.
    """
    root = source.resolve()
    tables = [root] if root.suffix == _PARQUET else sorted(root.glob(f"**/*{_PARQUET}"))
    if tables:
        folder = root.parent if tables == [root] else root
        return [shard for place, table in enumerate(tables) for shard in _row_groups(folder, table, place, column)]
    paths = [os.path.relpath(path, root) for path in collect([str(root)])]
    return [
        Shard(
            name=f"part-{start // size:06}.parquet",
            root=str(root),
            paths=paths[start : start + size],
            row_group=-1,
            pictures=len(paths[start : start + size]),
        )
        for start in range(0, len(paths), size)
    ]


def _row_groups(root: Path, table: Path, place: int, column: str) -> list[Shard]:
    try:
        file = pq.ParquetFile(table)
    except (OSError, pa.ArrowException) as error:
        message = f"{table} cannot be read as Parquet: {error}"
        raise UsageError(message) from error
    with file:
        if column not in file.schema_arrow.names:
            message = (
                f"{table} has no column {column!r}: name one of {', '.join(file.schema_arrow.names)} with --column"
            )
            raise UsageError(message)
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return [
        Shard(
            name=f"part-{place:04}-{group:06}.parquet",
            root=str(root),
            paths=[str(table.relative_to(root))],
            row_group=group,
            pictures=count,
        )
        for group, count in enumerate(rows)
    ]


def _job(arguments: argparse.Namespace, shards: Sequence[Shard]) -> dict[str, Any]:
    """What an output is of: answers of two jobs are never mixed.

    Raises:
        CalipsoError: the bundle cannot be used, or takes any labels.
    """
    opened = bundle.open_bundle(arguments.bundle)
    refuse_labels(arguments.bundle, manifest_of(opened), "this script gives none: use `calipso classify --labels`")
    files = dict.fromkeys(Path(shard["root"], path) for shard in shards for path in shard["paths"])
    cut = [(shard["name"], shard["paths"], shard["pictures"]) for shard in shards]
    listed = json.dumps([cut, [_identity(file) for file in files]])
    return {
        "bundle": opened.digest,
        "input": hashlib.sha256(listed.encode()).hexdigest(),
        "pictures": sum(shard["pictures"] for shard in shards),
        "shards": len(shards),
        "top": arguments.top,
        "column": arguments.column,
    }


def _identity(path: Path) -> list[int | str]:
    """What tells a file from another of its name: its size, when it was written, and of Parquet its footer."""
    try:
        status = path.stat()
        footer = [_footer_digest(path)] if path.suffix == _PARQUET else []
    except OSError:
        # A link to nowhere: it has its row all the same.
        return []
    return [status.st_size, status.st_mtime_ns, *footer]


def _footer_digest(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-_END, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-_END - length, os.SEEK_END)
        return hashlib.sha256(file.read(length)).hexdigest()


def _claim(output: Path, job: dict[str, Any]) -> None:
    """Make the output this job's, or go on with it.

    Raises:
        OutputPathError: it is another job's, or something else.
    """
    path, partial = output / JOB_FILE, output / f".{JOB_FILE}.partial"
    if path.is_file():
        earlier = _read_job(path)
        differing = [name for name in job if earlier.get(name) != job[name]]
        if differing:
            message = (
                f"{output} holds answers of another job ({', '.join(differing)} differ): give the same bundle, input "
                "and options to go on with it, or another output"
            )
            raise OutputPathError(message)
        # Not before: what lies in another's folder is not ours.
        _sweep(output)
        return
    if output.exists() and any(found != partial for found in output.iterdir()):
        message = f"{output} is not empty, and no output of this script: choose another"
        raise OutputPathError(message)
    output.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _read_job(path: Path) -> dict[str, Any]:
    """What the file says.

    Raises:
        OutputPathError: it is not of this script.
    """
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        earlier = None
    if not isinstance(earlier, dict):
        message = f"{path} was not written by this script: choose another output"
        raise OutputPathError(message)
    return earlier


def _sweep(output: Path) -> None:
    """Remove what workers that were killed have left."""
    for partial in output.glob(".part-*.partial"):
        partial.unlink(missing_ok=True)


class Worker:
    """An actor: the loaded bundle, and shards in, files out."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._output, self._column = Path(options["output"]), options["column"]
        self._top, self._batch = options["top"], options["batch"]
        self._classifier = calipso_runtime.load(
            options["bundle"], backend=options["backend"], threads=options["threads"]
        )

    def __call__(self, shard: Shard) -> dict[str, float]:
        """Answer a shard; says how many pictures, how many of them could not be read, and from when to when."""
        begun = _now()
        target, bad, pictures = self._output / shard["name"], 0, 0
        # Workers that died left theirs.
        if len(list(self._output.glob(f".{shard['name']}.*.partial"))) >= _TRIES:
            message = f"{_TRIES} workers died of {shard['name']}: {_described(shard)}. Take out what they died of"
            raise CalipsoError(message)
        # A shard may be under way twice: where a worker is taken for dead, and is not.
        partial = self._output / f".{shard['name']}.{uuid.uuid4().hex}.partial"
        try:
            with pq.ParquetWriter(partial, SCHEMA) as writer:
                for rows in self._answers(shard):
                    bad += sum(row["error"] is not None for row in rows)
                    pictures += len(rows)
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return {"pictures": pictures, "bad": bad, "begun": begun, "ended": _now()}

    def _answers(self, shard: Shard) -> Iterator[list[dict[str, Any]]]:
        for names, items in self._batches(shard):
            answers = self._classifier.classify_stream(items, top=self._top, batch=self._batch)
            yield [_row(name, answer) for name, (_, answer) in zip(names, answers, strict=True)]

    def _batches(self, shard: Shard) -> Iterator[tuple[list[str], list[Any]]]:
        """Names of pictures, and their paths or bytes."""
        if shard["row_group"] < 0:
            for start in range(0, len(shard["paths"]), self._batch):
                names = [str(path) for path in shard["paths"][start : start + self._batch]]
                yield names, [str(Path(shard["root"], name)) for name in names]
            return
        name = str(shard["paths"][0])
        with pq.ParquetFile(Path(shard["root"], name)) as file:
            row = sum(file.metadata.row_group(group).num_rows for group in range(shard["row_group"]))
            for batch in file.iter_batches(self._batch, row_groups=[shard["row_group"]], columns=[self._column]):
                items = [b"" if item is None else item for item in batch.column(0).to_pylist()]
                yield [f"{name}#{row + place}" for place in range(len(items))], items
                row += len(items)


def _now() -> float:
    """Seconds on the one clock that machines share, as far as theirs are right."""
    return datetime.now(timezone.utc).timestamp()


def _described(shard: Shard) -> str:
    if shard["row_group"] < 0:
        return f"{shard['paths'][0]} to {shard['paths'][-1]} in {shard['root']}"
    return f"row group {shard['row_group']} of {shard['paths'][0]} in {shard['root']}"


def _row(name: str, answer: calipso_runtime.Prediction | ImageError) -> dict[str, Any]:
    if isinstance(answer, ImageError):
        return {"image": name, "error": " ".join(str(answer).split())}
    return {
        "image": name,
        "error": None,
        "label": answer.label,
        "probability": answer.probability,
        "labels": [score.label for score in answer],
        "probabilities": [score.probability for score in answer],
        "logits": [score.logit for score in answer],
    }


def _work(shards: Sequence[Shard], arguments: argparse.Namespace, console: Console) -> float:
    """Have the pool answer what is not answered yet; gives the seconds from its first shard on, without Ray's start."""
    left = [shard for shard in shards if not (arguments.output / shard["name"]).is_file()]
    total, done = sum(shard["pictures"] for shard in shards), sum(shard["pictures"] for shard in left)
    if not left:
        return 0.0
    ray.init(address=arguments.address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = min(arguments.workers or max(1, cpus // arguments.threads), len(left))
    options = {
        "bundle": str(arguments.bundle.resolve()),
        "output": str(arguments.output.resolve()),
        **{name: getattr(arguments, name) for name in ("column", "top", "batch", "backend", "threads")},
    }
    # Its bars count blocks; pictures are counted below.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    answered = ray.data.from_items([dict(shard) for shard in left], override_num_blocks=len(left)).map(
        Worker,
        fn_constructor_args=(options,),
        compute=ActorPoolStrategy(size=workers),
        num_cpus=arguments.threads,
        num_gpus=arguments.gpus_per_worker,
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"{workers} workers", total=total, completed=total - done)
        bad, begun, ended = 0, math.inf, 0.0
        for row in answered.iter_rows():
            begun, ended = min(begun, row["begun"]), max(ended, row["ended"])
            bad += row["bad"]
            progress.update(bar, advance=row["pictures"], description=f"{workers} workers, {bad} unreadable")
    ray.shutdown()
    return ended - begun


def _summary(output: Path, shards: Sequence[Shard]) -> dict[str, int]:
    """What the files hold: counted there, not believed.

    Raises:
        CalipsoError: a shard has not as many rows as pictures.
    """
    bad = 0
    for shard in shards:
        errors = pq.read_table(output / shard["name"], columns=["error"]).column(0)
        if len(errors) != shard["pictures"]:
            message = f"{output / shard['name']} has {len(errors)} rows for {shard['pictures']} pictures: remove it"
            raise CalipsoError(message)
        bad += len(errors) - errors.null_count
    return {"pictures": sum(shard["pictures"] for shard in shards), "unreadable": bad}


if __name__ == "__main__":
    sys.exit(main())
