"""Starts a process per sample, contenders in turns, and watches each from outside: cold start and memory."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calipso_bench.cells import threads_in_words
from calipso_bench.contenders import ContenderUnavailable, is_bundle
from calipso_bench.pictures import Pictures, all_batches
from calipso_bench.record import Record
from calipso_bench.subject import Subject
from calipso_bench.verification import Reference, disagreements
from calipso_bench.worker import ANSWERED, status_bytes
from calipso_export.progress import Progress
from calipso_runtime.errors import CalipsoError, ParityError

# Reading a process's status takes about 30 microseconds: at this rate it does not disturb what it watches.
_WATCH_S = 0.02
_TIMEOUT_S = 600
_LAST_LINES = 5


def measure(
    contenders: Sequence[str],
    subject: Subject,
    pictures: Pictures,
    record: Record,
    make_reference: Callable[[], Reference],
    *,
    threads: int,
    count: int,
    seed: int,
    progress: Progress,
) -> None:
    """Take samples until every contender has `count` of them; each is kept when it is there.

    Raises:
        ParityError: a process answered otherwise than the reference.
        CalipsoError: a process failed.
    """
    missing = [each for each in contenders if record.takes_part(each) and len(record.samples(each, threads)) < count]
    if not missing:
        return
    reference = make_reference()
    jobs = _jobs(missing, subject, pictures, threads)
    what = f"processes, {threads_in_words(threads)}"
    total = count * len(jobs)
    for name in _turns(jobs, record, threads=threads, count=count, seed=seed):
        progress(what, sum(len(record.samples(each, threads)) for each in jobs), total)
        sample = _sample(jobs[name], subject.work)
        if "unavailable" in sample:
            record.contender(name).update(available=False, reason=sample["unavailable"])
            record.save()
            continue
        wrong = disagreements(sample.pop("answer"), "end-to-end", all_batches(pictures, 1)[0], reference)
        if wrong and record.document["verification"].get(name, {}).get("gated", True):
            message = f"{name} answered otherwise than {reference.name} in a process of its own: {'; '.join(wrong)}"
            raise ParityError(message)
        record.add_sample(name, threads, sample)
    progress(what, total, total)


def _turns(jobs: dict[str, Any], record: Record, *, threads: int, count: int, seed: int) -> Iterator[str]:
    """Whose turn it is, in a new order each round, until everyone who can run has `count` samples."""
    generator = np.random.default_rng(seed)
    names = list(jobs)
    for _ in range(count):
        for place in generator.permutation(len(names)):
            name = names[place]
            if record.contender(name)["available"] and len(record.samples(name, threads)) < count:
                yield name


def _jobs(contenders: Sequence[str], subject: Subject, pictures: Pictures, threads: int) -> dict[str, dict[str, Any]]:
    """What each worker is told."""
    picture = subject.work / "picture"
    picture.write_bytes(pictures.encoded[0])
    shared: dict[str, Any] = {
        "bundle": str(subject.bundle),
        "file_bytes": subject.file_bytes,
        "preprocess": dataclasses.asdict(subject.preprocess),
        "picture": str(picture),
        "threads": threads,
    }
    # What the bundle alone does not need takes long to make.
    rivals = not all(map(is_bundle, contenders))
    shared["plain"] = _path_or_none(subject.plain_onnx) if rivals else None
    shared["eager"] = _path_or_none(subject.eager_files) if rivals else None
    return {name: {**shared, "contender": name} for name in contenders}


def _path_or_none(make: Callable[[], Path]) -> str | None:
    try:
        return str(make())
    except ContenderUnavailable:
        return None


def _sample(job: dict[str, Any], work: Path) -> dict[str, Any]:
    """One process from its start to its end."""
    path = work / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    started = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - this Python, and files of our own
        [sys.executable, "-m", "calipso_bench.worker", str(path), repr(started)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            return _watched(process, job["contender"], started)
        finally:
            process.kill()


def _watched(process: "subprocess.Popen[str]", name: str, started: float) -> dict[str, Any]:
    peak = _Peak(process)
    told: list[str] = []
    # Read beside stdout: a full pipe would stop the process.
    errors = threading.Thread(target=lambda: told.extend(process.stderr or ()), daemon=True)
    timer = threading.Timer(_TIMEOUT_S, process.kill)
    for thread in (peak, errors, timer):
        thread.start()
    total_s, last = None, ""
    for line in process.stdout or ():
        if line.strip() == ANSWERED:
            total_s = time.perf_counter() - started
        last = line
    code = process.wait()
    timer.cancel()
    peak.join()
    errors.join()
    if code != 0:
        message = f"{name} failed in a process of its own (exit code {code}): {' '.join(told[-_LAST_LINES:]).strip()}"
        raise CalipsoError(message)
    sample: dict[str, Any] = json.loads(last)
    if "unavailable" not in sample:
        sample |= {"total_s": total_s, "peak_private_bytes": peak.bytes}
    return sample


class _Peak(threading.Thread):
    """Watches how much memory of a process is its own: no pages of files, which others may share."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__(daemon=True)
        self.bytes: int | None = None
        self._process = process
        self._status = Path(f"/proc/{process.pid}/status")

    def run(self) -> None:
        """Look until the process ends."""
        while self._process.poll() is None:
            own = status_bytes(self._status, "RssAnon")
            if own is None:
                return
            self.bytes = max(self.bytes or 0, own)
            time.sleep(_WATCH_S)
