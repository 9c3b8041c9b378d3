"""Contenders that fail their verification are not timed; if it is the bundle, nothing is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from bench_samples import NumpyContender, new_record

from calipso_bench import lineup as module
from calipso_bench.contenders import ContenderUnavailable
from calipso_bench.lineup import Lineup
from calipso_bench.pictures import Pictures, batches
from calipso_bench.record import Record
from calipso_bench.subject import Subject
from calipso_bench.verification import make_reference
from calipso_export.progress import silent
from calipso_runtime.errors import ParityError

MakeLineup = Callable[..., Lineup]


@pytest.fixture
def record() -> Record:
    return new_record()


@pytest.fixture
def make(tiny: Path, tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch) -> MakeLineup:
    """A lineup of the given contenders; None is one that cannot run."""
    subject = Subject(tiny, tmp_path, checkpoint=None, model=None, progress=silent)

    def build(**contenders: NumpyContender | None) -> Lineup:
        named = {name.replace("_", "/"): contender for name, contender in contenders.items()}

        def connect(name: str, *_: object, **__: object) -> NumpyContender:
            contender = named[name]
            if contender is None:
                message = "there is no such engine"
                raise ContenderUnavailable(message)
            contender.name = name
            return contender

        monkeypatch.setattr(module, "connect", connect)
        return Lineup(tuple(named), subject, record, threads=2, progress=silent)

    return build


def test_one_that_cannot_run_is_left_out_with_its_reason(make: MakeLineup, record: Record) -> None:
    lineup = make(eager=NumpyContender(), openvino=None)

    assert set(lineup.contenders) == {"eager"}
    assert record.contender("openvino")["reason"] == "there is no such engine"
    assert list(record.contender("eager")["setup_s"]) == ["2"]


def test_a_rival_that_answers_otherwise_is_not_timed(make: MakeLineup, record: Record, pictures: Pictures) -> None:
    lineup = make(openvino=NumpyContender(off=1.0), bundle_ort=NumpyContender())

    lineup.verify(pictures, make_reference(NumpyContender(), pictures, 1), 1)

    assert set(lineup.contenders) == {"bundle/ort"}
    assert record.document["verification"]["openvino"]["passed"] is False
    assert not record.takes_part("openvino")


def test_a_bundle_that_answers_otherwise_fails_the_run(make: MakeLineup, record: Record, pictures: Pictures) -> None:
    lineup = make(bundle_ort=NumpyContender(off=1.0))

    with pytest.raises(ParityError, match=r"bundle/ort does not answer like eager: .*Nothing is timed"):
        lineup.verify(pictures, make_reference(NumpyContender(), pictures, 1), 1)
    assert record.document["verification"]["bundle/ort"]["passed"] is False


def test_a_rival_whose_engine_fails_at_a_batch_is_left_out(
    make: MakeLineup, record: Record, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        message = "\nout of memory\nat kernel.cpp:7"
        raise RuntimeError(message)

    rival = NumpyContender()
    lineup = make(openvino=rival, bundle_ort=NumpyContender())
    reference = make_reference(NumpyContender(), pictures, 1)
    monkeypatch.setattr(rival, "classify", fail)

    entrants = lineup.entrants("classify", batches(pictures, 4, most=1), reference)

    assert [each.name for each in entrants] == ["bundle/ort"]
    assert record.contender("openvino")["reason"] == "classify, batch 4 fails: out of memory"


def test_a_batch_that_is_answered_otherwise_takes_a_rival_out_of_its_cell(
    make: MakeLineup, record: Record, pictures: Pictures
) -> None:
    rival = NumpyContender()
    lineup = make(openvino=rival, bundle_ort=NumpyContender())
    reference = make_reference(NumpyContender(), pictures, 1)
    lineup.verify(pictures, reference, 1)
    rival.off = 1.0

    entrants = lineup.entrants("classify", batches(pictures, 4, most=1), reference)

    assert [each.name for each in entrants] == ["bundle/ort"]
    assert record.document["verification"]["openvino"]["failures"] != []


def test_an_entrant_is_checked_against_its_own_verified_answer(make: MakeLineup, pictures: Pictures) -> None:
    contender = NumpyContender()
    lineup = make(bundle_ort=contender)
    reference = make_reference(NumpyContender(), pictures, 1)
    lineup.verify(pictures, reference, 1)
    (entrant,) = lineup.entrants("classify", batches(pictures, 1, most=2), reference)

    right = entrant.call(1)
    contender.off = 0.5

    assert entrant.check(1, right) == entrant.check(3, right) == []
    assert entrant.check(0, right) != []
    assert entrant.check(1, entrant.call(1)) != []


def test_the_worst_of_several_thread_counts_is_kept(make: MakeLineup, record: Record, pictures: Pictures) -> None:
    reference = make_reference(NumpyContender(), pictures, 1)
    make(bundle_ort=NumpyContender(off=1e-5)).verify(pictures, reference, 1)
    worst = record.document["verification"]["bundle/ort"]["relative_logit_error"]

    make(bundle_ort=NumpyContender()).verify(pictures, reference, 1)

    assert record.document["verification"]["bundle/ort"]["relative_logit_error"] == worst > 1e-7
