"""A contender is held to the reference before it is timed, and to its own answers while it is."""

import numpy as np
import pytest
from bench_samples import Float32, NumpyContender

from calipso_bench.pictures import Pictures, all_batches
from calipso_bench.verification import Reference, call, disagreements, make_reference, recheck, verify


@pytest.fixture
def reference(pictures: Pictures) -> Reference:
    return make_reference(NumpyContender(), pictures, 3)


def test_the_same_answers_pass_whatever_the_batch_size(pictures: Pictures, reference: Reference) -> None:
    found = verify(NumpyContender("ort-plain"), pictures, reference, 5)

    assert found["passed"]
    assert (found["pictures"], found["against"], found["top1_agreement"]) == (8, "eager", 1.0)
    assert found["relative_logit_error"] < 1e-5


def test_an_fp32_contender_that_is_off_fails_and_says_by_how_much(pictures: Pictures, reference: Reference) -> None:
    found = verify(NumpyContender(off=1.0), pictures, reference, 1)

    assert not found["passed"]
    assert any("relative logit error" in failure for failure in found["failures"])


def test_lower_precision_is_reported_and_not_refused(pictures: Pictures, reference: Reference) -> None:
    found = verify(NumpyContender(exact=False, off=1.0), pictures, reference, 1)

    assert found["passed"]
    assert found["relative_logit_error"] > 1e-3


def test_answers_that_are_not_finite_fail_in_any_precision(pictures: Pictures, reference: Reference) -> None:
    found = verify(NumpyContender(exact=False, off=float("nan")), pictures, reference, 1)

    assert not found["passed"]


def test_a_wrong_class_end_to_end_is_found(pictures: Pictures, reference: Reference) -> None:
    batch = all_batches(pictures, 2)[0]
    right = call(NumpyContender(), "end-to-end", batch)
    assert isinstance(right, list)
    wrong = [right[0], right[1][::-1]]

    assert disagreements(right, "end-to-end", batch, reference) == []
    assert disagreements(wrong, "end-to-end", batch, reference) == ["end-to-end, batch 2: another best class in row 1"]


def test_two_classes_that_are_as_good_are_no_disagreement(pictures: Pictures) -> None:
    batch = all_batches(pictures, 1)[0]
    logits = np.zeros((8, 7), np.float32)
    logits[:, 1], logits[:, 2] = 1.0, 1.0 + 1e-7
    reference = Reference(name="eager", logits=logits, embedding=np.ones((8, 5), np.float32))

    assert disagreements([[1, 2]], "end-to-end", batch, reference) == []
    assert disagreements([[0, 2]], "end-to-end", batch, reference) != []


def test_an_embedding_in_another_direction_is_a_disagreement(pictures: Pictures, reference: Reference) -> None:
    batch = all_batches(pictures, 1)[0]
    turned = reference.embedding[:1][:, ::-1].copy()

    assert disagreements(reference.embedding[:1], "encode", batch, reference) == []
    assert "cosine" in disagreements(turned, "encode", batch, reference)[0]


def test_the_recheck_forgives_rounding_and_nothing_else() -> None:
    expected = np.array([[1.0, 2.0, 4.0]], np.float32)

    def told(output: Float32, *, exact: bool = True) -> list[str]:
        return recheck(output, expected, expected, exact=exact)

    assert told(expected * np.float32(1 + 1e-6)) == []
    assert "relative error" in told(expected + np.float32([[0, 0, 0.1]]))[0]
    assert told(expected[:, :2]) == ["answered shape [1, 2], before it was [1, 3]"]
    assert told(np.full((1, 3), np.nan, np.float32), exact=False) != []


def test_the_recheck_of_classes_wants_the_same_ones() -> None:
    logits = np.array([[0.0, 3.0, 2.0, 2.0]], np.float32)

    assert recheck([[1, 2]], [[1, 2]], logits, exact=True) == []
    assert recheck([[2, 1]], [[1, 2]], logits, exact=True) == ["answered [[2, 1]], before it was [[1, 2]]"]
    assert recheck([[1]], [[1, 2]], logits, exact=True) != []


def test_the_recheck_lets_two_classes_change_places_that_are_as_good() -> None:
    logits = np.array([[0.0, 3.0, 2.0, 2.0]], np.float32)

    assert recheck([[1, 3]], [[1, 2]], logits, exact=True) == []
