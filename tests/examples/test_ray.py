"""The Ray examples on a real local Ray: whoever is killed, each picture is answered once, as the runtime answers it."""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from bad_inputs import bad_pictures, no_models, two_channels
from PIL import Image
from runtime_samples import LABELS, tiny_manifest, write_model

import calipso_runtime
from calipso_runtime import bundle, graph_file
from calipso_runtime.errors import CalipsoError, OutputPathError
from calipso_runtime.manifest import write_manifest
from child_process import child

pytest.importorskip("ray", reason="needs Ray: pip install 'calipso[ray]'")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'calipso[ray]'")
pa = pytest.importorskip("pyarrow")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COUNT, SHARD = 300, 5
TRIES, RAY_IS_SLOW = 3, "The current node timed out during startup"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
Run = Callable[..., "subprocess.Popen[str]"]


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((400 + seed, 300), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders, some of which cannot be read, and one of two channels."""
    folder = tmp_path_factory.mktemp("album")
    for number in range(COUNT):
        path = folder / f"{number % 7}" / f"{number:04}.jpg"
        path.parent.mkdir(exist_ok=True)
        picture(number).save(path)
    for name, (content, _) in BROKEN.items():
        (folder / name).write_bytes(content)
    (folder / "6" / "0006.jpg").write_bytes(two_channels())
    return folder


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle, as the runtime's tests have it."""
    folder, manifest = tmp_path_factory.mktemp("bundle"), tiny_manifest(parity="passed")
    write_model(folder / graph_file.MODEL_FILE, manifest)
    files = {graph_file.MODEL_FILE: bundle.file_entry(folder / graph_file.MODEL_FILE)}
    write_manifest(folder / bundle.MANIFEST_FILE, dataclasses.replace(manifest, files=files))
    return folder


# Files among the others, with what is said of them.
BROKEN = {f"{number}/{number:04}.jpg": each for number, each in enumerate(bad_pictures().values())}


@pytest.fixture
def start() -> Iterator[Run]:
    """Starts an example; what it leaves running is ended."""
    with contextlib.ExitStack() as started:

        def begin(script: str, *arguments: object) -> "subprocess.Popen[str]":
            command = [sys.executable, EXAMPLES / script, *arguments]
            pipe = subprocess.PIPE
            process = started.enter_context(child(command, stdout=pipe, stderr=pipe, text=True))
            started.callback(interrupt, process)
            return process

        yield begin


def interrupt(process: "subprocess.Popen[str]") -> None:
    """End an example that still runs, together with its Ray: a kill would leave that behind."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.parquet"))


def start_batch(start: Run, *arguments: object, until: Callable[[], bool]) -> "subprocess.Popen[str]":
    """A batch job that has come so far, or has ended; begun again where Ray could not start in its 30 seconds."""
    for _ in range(TRIES):
        job = start("ray_batch.py", *arguments)
        deadline = time.monotonic() + 400
        while not until() and job.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if job.poll() in (0, None):
            return job
        told = job.communicate()[1]
        assert RAY_IS_SLOW in told, told
    pytest.skip(f"Ray does not start here: {RAY_IS_SLOW}")


def finished(start: Run, *arguments: object) -> tuple[str, str]:
    """What a batch job that succeeds says."""
    job = start_batch(start, *arguments, until=lambda: False)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    return out, err


def is_worker(process: psutil.Process) -> bool:
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def rows(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return found


def check(found: list[dict[str, Any]], expected: dict[str, Any], model: Path) -> None:
    """Each of the pictures (by name; None for those that cannot be read) has one row, with the runtime's answer."""
    assert sorted(row["image"] for row in found) == sorted(expected)
    with calipso_runtime.load(model, threads=1) as classifier:
        for row in found:
            content = expected[row["image"]]
            if content is None:
                assert BROKEN.get(row["image"], ("", "cannot be used as a picture"))[1] in row["error"]
                assert row["label"] is None
                continue
            answer = classifier.classify(content)
            assert row["error"] is None
            assert row["label"] == answer.label == row["labels"][0]
            np.testing.assert_allclose(row["logits"], [score.logit for score in answer], atol=1e-4)
            np.testing.assert_allclose(row["probability"], answer.probability, atol=1e-5)


def album_contents(album: Path) -> dict[str, Any]:
    names = [str(path.relative_to(album)) for path in album.rglob("*.jpg")]
    assert len(names) == COUNT
    return {name: None if name in BROKEN else str(album / name) for name in names}


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(
    album: Path, tiny_bundle: Path, tmp_path: Path, start: Run
) -> None:
    output = tmp_path / "answers"
    command = (tiny_bundle, album, "-o", output, "--shard", SHARD, "--workers", 2)
    job = start_batch(start, *command, until=lambda: len(parts(output)) >= 3)

    workers = [each for each in psutil.Process(job.pid).children(recursive=True) if is_worker(each)]
    workers[0].send_signal(signal.SIGKILL)
    done_by_then = len(parts(output))
    out, err = job.communicate(timeout=300)

    assert done_by_then < COUNT // SHARD
    assert job.returncode == 0, err
    # Above it, Ray may tell of the worker.
    summary = json.loads(out.splitlines()[-1])
    assert (summary["pictures"], summary["unreadable"]) == (COUNT, len(BROKEN))
    assert f"{COUNT}/{COUNT}" in err
    assert list(output.glob(".*")) == []
    check(rows(output), album_contents(album), tiny_bundle)


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_where_it_stopped(
    album: Path, tiny_bundle: Path, tmp_path: Path, start: Run
) -> None:
    output = tmp_path / "answers"
    command = (tiny_bundle, album, "-o", output, "--shard", SHARD, "--workers", 1)
    job = start_batch(start, *command, until=lambda: len(parts(output)) >= 3)
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL)
    job.communicate(timeout=120)
    # Ray ends its workers with the job, and its own agents some time later.
    _, alive = psutil.wait_procs([process for process in family if is_worker(process)], timeout=120)
    assert alive == [], "workers of a job that was killed go on"
    for process in family:
        if process.is_running():
            process.kill()
    before = {path: path.stat().st_mtime_ns for path in parts(output)}

    finished(start, *command)

    assert 3 <= len(before) < COUNT // SHARD
    assert {path: path.stat().st_mtime_ns for path in before} == before
    check(rows(output), album_contents(album), tiny_bundle)


@pytest.mark.slow
def test_parquet_is_read_row_group_by_row_group(tiny_bundle: Path, tmp_path: Path, start: Run) -> None:
    contents: list[Any] = []
    for number in range(25):
        stream = io.BytesIO()
        picture(number).save(stream, "PNG")
        contents.append(stream.getvalue())
    contents[3], contents[17] = None, b"no picture"
    table = pa.table({"id": range(25), "bytes": pa.array(contents, pa.binary())})
    pq.write_table(table, tmp_path / "pictures.parquet", row_group_size=10)

    options = ("--column", "bytes", "--workers", 1, "--batch", 4)
    finished(start, tiny_bundle, tmp_path / "pictures.parquet", "-o", tmp_path / "out", *options)

    assert len(parts(tmp_path / "out")) == 3
    expected = {f"pictures.parquet#{row}": value for row, value in enumerate(contents)}
    check(rows(tmp_path / "out"), {**expected, "pictures.parquet#17": None}, tiny_bundle)


def test_answers_of_two_jobs_are_never_mixed(album: Path, tiny_bundle: Path, tmp_path: Path, start: Run) -> None:
    import ray_batch

    output = tmp_path / "answers"
    ray_batch._claim(output, {"bundle": "another", "top": 5})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    pq.write_table(pa.table({"id": [1]}), tmp_path / "ids.parquet")

    for arguments, told in (
        ((album, "-o", output), "holds answers of another job (bundle, input, pictures"),
        ((album, "-o", tmp_path / "mine"), "is not empty, and no output of this script"),
        ((tmp_path / "ids.parquet", "-o", tmp_path / "new"), "has no column 'image'"),
        ((tmp_path / "mine", "-o", tmp_path / "new"), "no pictures in"),
    ):
        job = start("ray_batch.py", tiny_bundle, *arguments)
        _, err = job.communicate(timeout=120)
        assert job.returncode == 2
        assert told in err


def job_of(model: Path, source: Path, column: str = "image") -> dict[str, Any]:
    """What a batch job writes of itself."""
    import ray_batch

    arguments = argparse.Namespace(bundle=model, top=5, column=column)
    job: dict[str, Any] = ray_batch._job(arguments, ray_batch._shards(source, SHARD, column))
    return job


def folder_of_one(folder: Path, content: bytes, written: int = 1_600_000_000) -> Path:
    folder.mkdir()
    (folder / "0.jpg").write_bytes(content)
    os.utime(folder / "0.jpg", (written, written))
    return folder


def test_a_folder_of_the_same_names_is_another_job(tiny_bundle: Path, tmp_path: Path) -> None:
    first = job_of(tiny_bundle, folder_of_one(tmp_path / "first", b"1234"))

    assert job_of(tiny_bundle, folder_of_one(tmp_path / "copy", b"1234")) == first
    assert job_of(tiny_bundle, folder_of_one(tmp_path / "longer", b"12345")) != first
    assert job_of(tiny_bundle, folder_of_one(tmp_path / "later", b"4321", 1_600_000_001)) != first


def test_another_folder_of_the_same_names_is_not_given_the_firsts_answers(
    tiny_bundle: Path, tmp_path: Path, start: Run
) -> None:
    import ray_batch

    output, pictures = tmp_path / "answers", tmp_path / "pictures"
    ray_batch._claim(output, job_of(tiny_bundle, folder_of_one(tmp_path / "first", b"1234")))
    folder_of_one(pictures, b"54321")

    job = start("ray_batch.py", tiny_bundle, pictures, "-o", output, "--shard", SHARD)
    out, err = job.communicate(timeout=120)

    assert (job.returncode, out) == (2, "")
    assert "holds answers of another job (input differ)" in err


def test_parquet_of_the_same_shape_is_another_job(tiny_bundle: Path, tmp_path: Path) -> None:
    def written(name: str, contents: list[bytes], when: int = 1_600_000_000) -> dict[str, Any]:
        path = tmp_path / name / "pictures.parquet"
        path.parent.mkdir()
        pq.write_table(pa.table({"image": pa.array(contents, pa.binary())}), path)
        os.utime(path, (when, when))
        return job_of(tiny_bundle, path)

    first = written("first", [b"1234", b"5678"])

    assert written("copy", [b"1234", b"5678"]) == first
    # Of one size and one time: the footer has the least and the greatest value.
    assert written("other", [b"1234", b"5679"]) != first
    # It has none of long values: then the time tells them apart.
    long = written("long", [b"1" * 9000])
    assert written("long-other", [b"2" * 9000], 1_600_000_001) != long


def test_what_cannot_be_read_has_its_row_in_a_job(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = folder_of_one(tmp_path / "pictures", b"1234")
    (folder / "1.jpg").symlink_to(tmp_path / "nowhere.jpg")

    assert job_of(tiny_bundle, folder)["pictures"] == 2


@pytest.mark.parametrize("job", [None, "{}", "[]", "no JSON"])
def test_nothing_of_a_folder_that_is_not_ours_is_removed(tmp_path: Path, job: str | None) -> None:
    import ray_batch

    (tmp_path / ".draft.partial").write_text("mine")
    (tmp_path / ".part-000001.parquet.1.partial").write_text("mine")
    if job is not None:
        (tmp_path / "_job.json").write_text(job)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(OutputPathError):
        ray_batch._claim(tmp_path, {"bundle": "a"})

    assert sorted(tmp_path.iterdir()) == before


def test_what_killed_workers_have_left_in_an_output_of_ours_is_removed(tmp_path: Path) -> None:
    import ray_batch

    # As a job that was killed while it claimed the folder.
    (tmp_path / "._job.json.partial").write_text("{")
    ray_batch._claim(tmp_path, {"bundle": "a"})
    (tmp_path / ".part-000001.parquet.1.partial").touch()
    (tmp_path / ".draft.partial").touch()

    ray_batch._claim(tmp_path, {"bundle": "a"})

    assert sorted(path.name for path in tmp_path.iterdir()) == [".draft.partial", "_job.json"]


def test_rows_of_two_parquet_files_of_one_name_are_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    import ray_batch

    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        table = pa.table({"image": pa.array([b"no picture"] * 2, pa.binary())})
        pq.write_table(table, tmp_path / "in" / folder / "x.parquet", row_group_size=1)
    output = tmp_path / "out"
    output.mkdir()
    options = {"output": output, "bundle": tiny_bundle, "column": "image", "top": 1, "batch": 1, "backend": "auto"}
    worker = ray_batch.Worker({**options, "threads": 1})

    for shard in ray_batch._shards(tmp_path / "in", SHARD, "image"):
        worker(shard)

    named = [row["image"] for row in rows(output)]
    assert sorted(named) == ["a/x.parquet#0", "a/x.parquet#1", "b/x.parquet#0", "b/x.parquet#1"]


def test_what_is_no_calipso_file_is_told_before_ray_starts(album: Path, tmp_path: Path, start: Run) -> None:
    models = no_models(tmp_path / "models")
    for path in (tmp_path / "models" / "text.onnx", tmp_path / "models" / "json"):
        for job in (
            start("ray_batch.py", path, album, "-o", tmp_path / "answers"),
            start("ray_serve.py", path, "--port", 0),
        ):
            out, err = job.communicate(timeout=120)

            assert (job.returncode, out) == (1, "")
            assert err.splitlines()[-1].startswith(f"error: {path}")
            assert models[path] in err
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize("kind", ["open", "embed"])
def test_a_bundle_that_takes_any_labels_is_refused_before_ray_starts(
    album: Path, tmp_path: Path, start: Run, kind: str
) -> None:
    open_samples = pytest.importorskip("open_samples", reason="needs tokenizers: pip install 'calipso[text]'")
    path = open_samples.write_open_bundle(tmp_path / "any.calipso", kind=kind)
    for job in (
        start("ray_batch.py", path, album, "-o", tmp_path / "answers"),
        start("ray_serve.py", path, "--port", 0),
    ):
        out, err = job.communicate(timeout=120)

        assert (job.returncode, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"error: {path} takes labels when it is used, and ")
        assert "--head-mode baked" in err
    assert not (tmp_path / "answers").exists()


def test_a_shard_that_kills_its_workers_is_named_instead_of_tried_forever(
    album: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    import ray_batch

    options = {"output": tmp_path, "bundle": tiny_bundle, "column": "", "top": 1, "batch": 1, "backend": "auto"}
    worker = ray_batch.Worker({**options, "threads": 1})
    shard = ray_batch._shards(album, SHARD, "")[1]
    for number in range(4):
        (tmp_path / f".{shard['name']}.{number}.partial").touch()

    assert worker(shard)["pictures"] == SHARD
    (tmp_path / f".{shard['name']}.4.partial").touch()
    with pytest.raises(CalipsoError, match=r"5 workers died of part-000001.parquet: 0/0035.jpg to 0/0063.jpg in"):
        worker(shard)


def post(url: str, content: bytes | None) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content), timeout=60) as reply:  # noqa: S310
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.slow
def test_the_service_answers_like_the_runtime_under_load(
    album: Path, tiny_bundle: Path, unused_port: int, start: Run
) -> None:
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'calipso[ray]'")
    service = start("ray_serve.py", tiny_bundle, "--port", unused_port, "--replicas", 2, "--top", 5, "--max-mb", "0.5")
    assert service.stdout is not None
    assert service.stderr is not None
    told = threading.Thread(target=service.stderr.read, daemon=True)
    told.start()
    assert any(line.startswith("serving on") for line in service.stdout)
    url = f"http://127.0.0.1:{unused_port}/"
    contents = album_contents(album)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda name: post(url, (album / name).read_bytes()), contents))

    with calipso_runtime.load(tiny_bundle, threads=1) as classifier:
        for name, (status, answer) in zip(contents, answers, strict=True):
            if contents[name] is None:
                assert status == 400
                assert BROKEN[name][1] in answer["error"]
                continue
            expected = classifier.classify(contents[name])
            assert status == 200
            assert [each["label"] for each in answer["predictions"]] == [score.label for score in expected]
            found = [each["logit"] for each in answer["predictions"]]
            np.testing.assert_allclose(found, [score.logit for score in expected], atol=1e-4)
    assert post(url, b"x" * 600_000)[0] == 413
    assert post(url, None)[1]["labels"] == list(LABELS)
    service.send_signal(signal.SIGINT)
    assert service.wait(timeout=60) == 0
    told.join(timeout=60)
    service.stdout.close()
    service.stderr.close()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
