"""A contender in a process of its own."""

import json
import sys
from pathlib import Path

import pytest
from bench_samples import new_record

from calipso_bench import processes
from calipso_bench.contenders import connect
from calipso_bench.pictures import Pictures
from calipso_bench.record import Record
from calipso_bench.subject import Subject
from calipso_bench.verification import Reference, make_reference
from calipso_export.progress import silent
from calipso_runtime.errors import CalipsoError, ParityError


@pytest.fixture
def subject(tiny: Path, tmp_path: Path) -> Subject:
    return Subject(tiny, tmp_path, checkpoint=None, model=None, progress=silent)


@pytest.fixture
def reference(subject: Subject, pictures: Pictures) -> Reference:
    return make_reference(connect("bundle/ort", subject, threads=1), pictures, 1)


def measured(subject: Subject, pictures: Pictures, reference: Reference, *contenders: str) -> Record:
    record = new_record()
    processes.measure(
        contenders, subject, pictures, record, lambda: reference, threads=1, count=1, seed=0, progress=silent
    )
    return record


def test_a_process_tells_its_times_and_memory(subject: Subject, pictures: Pictures, reference: Reference) -> None:
    (sample,) = measured(subject, pictures, reference, "bundle/ort").samples("bundle/ort", 1)

    assert 0 < sample["import_s"] < sample["first_answer_s"] <= sample["total_s"]
    assert sample["import_s"] + sample["load_s"] < sample["first_answer_s"]
    assert sample["steady_ms"] > 0
    assert sample["weights_bytes"] == subject.file_bytes
    assert "answer" not in sample
    if sys.platform == "linux":
        assert 2**20 < sample["peak_private_bytes"] <= sample["peak_rss_bytes"] < 2**30


def test_a_contender_that_cannot_run_there_is_left_out(
    subject: Subject, pictures: Pictures, reference: Reference
) -> None:
    record = measured(subject, pictures, reference, "bundle/ort-cuda")

    assert record.samples("bundle/ort-cuda", 1) == []
    assert "CUDA" in record.contender("bundle/ort-cuda")["reason"]


def test_a_process_that_answers_otherwise_fails_the_run(
    subject: Subject, pictures: Pictures, reference: Reference
) -> None:
    other = Reference(name="eager", logits=-reference.logits, embedding=reference.embedding)

    with pytest.raises(ParityError, match="bundle/ort answered otherwise than eager in a process of its own"):
        measured(subject, pictures, other, "bundle/ort")


def test_a_process_that_fails_says_what_it_said(subject: Subject, pictures: Pictures, reference: Reference) -> None:
    (subject.bundle.parent / "elsewhere").mkdir(exist_ok=True)
    subject.bundle = subject.bundle.parent / "elsewhere"

    with pytest.raises(
        CalipsoError, match=r"bundle/ort failed in a process of its own \(exit code 1\): .*is not a Calipso bundle"
    ):
        measured(subject, pictures, reference, "bundle/ort")


def test_a_resumed_run_starts_only_the_processes_that_are_missing(
    subject: Subject, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = new_record()
    record.add_sample("bundle/ort", 1, {"total_s": 1.0})
    started: list[str] = []

    def sample(job: dict[str, str], _: Path) -> dict[str, object]:
        started.append(job["contender"])
        return {"total_s": 2.0, "answer": [[0]]}

    monkeypatch.setattr(processes, "_sample", sample)
    monkeypatch.setattr(processes, "disagreements", lambda *_: [])
    both = ("bundle/ort", "bundle/openvino")
    processes.measure(
        both, subject, pictures, record, lambda: None, threads=1, count=2, seed=0, progress=silent
    )  # fmt: skip

    assert sorted(started) == ["bundle/openvino", "bundle/openvino", "bundle/ort"]
    assert json.dumps(record.document["processes"])
