"""How many pictures a second many workers or clients get answered, against one Python process in turns.

    python -m benchmarks.throughput PHOTOS [--hosts "Ray Data,Ray Serve"]

Ray Data answers a folder (examples/ray_batch.py), with its start counted apart; Triton and Ray Serve answer clients
that each send one file and wait. Every worker and every server has one thread. Rows of other hosts are kept.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks import RESULTS, ROOT
from benchmarks.host_programs import HostUnavailable, Logits
from benchmarks.host_servers import Connect, Server, check_ray, in_order, labels_of, ray_serve, triton
from benchmarks.hosts import LOOK_S, differences, eager_logits, exported, keep_row, whereabouts
from calipso_runtime import Prediction, load
from calipso_runtime.errors import ImageError

FILE = RESULTS / "throughput.json"
WHAT = "one bundle of raw pixels, many pictures at once, in turns with one Python process"
ROUNDS = 5
# Each photograph is answered so often in a round, so that work takes longer than to begin it.
REPEATS = 2
BATCH, SHARD = 32, 50


class Batch(NamedTuple):
    """Logits float32 [N,K] of files, the seconds of the work, and those that it took to begin and to end it."""

    logits: Logits
    seconds: float
    apart_s: float


# Of files, and how many workers or clients there are.
Run = Callable[[Sequence[Path], int], Batch]


def main() -> int:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path, help="folder of photographs, searched for .jpg")
    parser.add_argument("--hosts", default=",".join(HOSTS))
    arguments = parser.parse_args()
    photos, wanted = sorted(arguments.photos.rglob("*.jpg")), arguments.hosts.split(",")
    if not photos or not set(wanted) <= set(HOSTS):
        parser.error(f"{arguments.photos} has {len(photos)} photographs; hosts are {', '.join(HOSTS)}")
    where = whereabouts()
    with tempfile.TemporaryDirectory() as name:
        bundle = exported(Path(name))
        eager = eager_logits(bundle, photos)
        for host in wanted:
            for row in measured(host, bundle, photos, eager, where):
                keep_row(FILE, WHAT, row, ("host", "at_once"))
    return 0


def measured(
    host: str, bundle: Path, photos: Sequence[Path], eager: Logits, where: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row for each number of workers or clients; or one that says why there is none."""
    run_host, unit, numbers = HOSTS[host]
    busy_percent = psutil.cpu_percent(interval=LOOK_S)
    files = [*photos] * REPEATS
    expected = np.concatenate([eager] * (REPEATS * ROUNDS))
    try:
        with run_host(bundle) as run, process(bundle) as run_process:
            for number in numbers:
                # All have been asked before they are timed.
                run(photos[:SHARD], number)
                run_process(photos[:BATCH], 1)
                rounds = [(run(files, number), run_process(files, 1)) for _ in range(ROUNDS)]
                logits = np.concatenate([own.logits for own, _ in rounds])
                yield {
                    "host": host,
                    "at_once": f"{number} {unit}{'s' if number > 1 else ''}",
                    **where,
                    "busy_percent": busy_percent,
                    "photographs": len(photos),
                    "pictures": len(files),
                    **differences(logits, expected),
                    "seconds": [round(own.seconds, 3) for own, _ in rounds],
                    "apart_s": [round(own.apart_s, 3) for own, _ in rounds],
                    "process_seconds": [round(other.seconds, 3) for _, other in rounds],
                }
    except HostUnavailable as reason:
        yield {"host": host, "at_once": "", "reason": str(reason)}


@contextmanager
def process(bundle: Path) -> Iterator[Run]:
    """One Python process with the loaded bundle, batch after batch."""
    labels = labels_of(bundle)
    with load(bundle, backend="ort", threads=1, keep_optimised=False) as classifier:

        def run(files: Sequence[Path], _: int) -> Batch:
            start = time.perf_counter()
            answers = list(classifier.classify_stream(map(str, files), top=len(labels), batch=BATCH))
            seconds = time.perf_counter() - start
            by_label = [{score.label: score.logit for score in _answered(each)} for _, each in answers]
            return Batch(in_order(by_label, labels), seconds, 0.0)

        yield run


def _answered(answer: Prediction | ImageError) -> Prediction:
    if isinstance(answer, ImageError):
        raise answer
    return answer


@contextmanager
def ray_data(bundle: Path) -> Iterator[Run]:
    """examples/ray_batch.py, which starts a Ray of its own for each run."""
    check_ray()
    pq: Any = importlib.import_module("pyarrow.parquet")

    labels = labels_of(bundle)

    def run(files: Sequence[Path], workers: int) -> Batch:
        with tempfile.TemporaryDirectory() as name:
            album, output = Path(name, "album"), Path(name, "answers")
            album.mkdir()
            for place, path in enumerate(files):
                (album / f"{place:06}.jpg").symlink_to(path.resolve())
            command = [sys.executable, str(ROOT / "examples/ray_batch.py"), str(bundle), str(album), "-o", str(output)]
            options = {"workers": workers, "threads": 1, "top": len(labels), "batch": BATCH, "shard": SHARD}
            flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
            start = time.perf_counter()
            done = subprocess.run([*command, *flags, "--backend", "ort"], capture_output=True, text=True, check=False)
            whole = time.perf_counter() - start
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            seconds = json.loads(done.stdout.splitlines()[-1])["working_seconds"]
            rows = sorted(pq.read_table(output).to_pylist(), key=lambda row: row["image"])
        by_label = [dict(zip(row["labels"], row["logits"], strict=True)) for row in rows]
        return Batch(in_order(by_label, labels), seconds, whole - seconds)

    yield run


def clients_of(server: Server) -> Callable[[Path], AbstractContextManager[Run]]:
    """A server as what several clients ask at once, each a share of the files."""

    @contextmanager
    def host(bundle: Path) -> Iterator[Run]:
        labels = labels_of(bundle)
        with server(bundle) as connect:

            def run(files: Sequence[Path], clients: int) -> Batch:
                shares = [files[place::clients] for place in range(clients)]
                start = time.perf_counter()
                with ThreadPoolExecutor(clients) as pool:
                    answers = list(pool.map(lambda share: _share(connect, share), shares))
                seconds = time.perf_counter() - start
                found: list[dict[str, float]] = [{}] * len(files)
                for place, share in enumerate(answers):
                    found[place::clients] = share
                return Batch(in_order(found, labels), seconds, 0.0)

            yield run

    return host


def _share(connect: Connect, files: Sequence[Path]) -> list[dict[str, float]]:
    with connect() as client:
        return [dict(client(path.read_bytes())) for path in files]


HOSTS: dict[str, tuple[Callable[[Path], AbstractContextManager[Run]], str, tuple[int, ...]]] = {
    "Ray Data": (ray_data, "worker", (1, 2)),
    "Triton (Python)": (clients_of(triton), "client", (1, 2, 4)),
    "Ray Serve": (clients_of(ray_serve), "client", (1, 2, 4)),
}


if __name__ == "__main__":
    sys.exit(main())
