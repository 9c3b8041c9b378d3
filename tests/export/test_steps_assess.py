"""Confidence: measured on photos that the head was not fitted on, and on classes that it does not know."""

import dataclasses

import numpy as np
import pytest
import torch
from export_samples import unit_vectors

from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.few_shot import Fit, Shots
from calipso_export.heads.tip_adapter import TipAdapter
from calipso_export.steps.assess import assess
from calipso_runtime.confidence import Confidence, calibration_error, reliability
from calipso_runtime.errors import CalipsoWarning, ShotsError

CLASSES, EACH, WIDTH, SCALE = 6, 8, 16, 10.0
ALPHA, BETA = 2.0, 5.5
CALIP = CalipParameters(b2=0.5, b3=0.25)


@pytest.fixture
def shots() -> Shots:
    """Photos around the texts of their classes, near enough to be right more often than not."""
    rng = np.random.default_rng(3)
    text, labels = unit_vectors(rng, CLASSES, WIDTH), np.repeat(np.arange(CLASSES), EACH)
    plain = text[labels] + 2.5 * unit_vectors(rng, len(labels), WIDTH)
    plain = torch.from_numpy(plain / np.linalg.norm(plain, axis=1, keepdims=True)).float()
    photos = PhotoFeatures(
        labels=torch.from_numpy(labels),
        contents=torch.arange(len(labels)),
        keys=plain,
        plain=plain,
        calip=torch.from_numpy(rng.standard_normal((len(labels), 2, CLASSES))).float(),
    )
    names = tuple(f"class {index}" for index in range(CLASSES))
    return Shots(photos=photos, text=torch.from_numpy(text), scale=SCALE, bias=0.0, classes=names)


def cache_of(shots: Shots) -> TipAdapter:
    return TipAdapter.of_shots(shots, alpha=ALPHA, beta=BETA)


def fit_of(shots: Shots) -> Fit:
    """A cache, and for each photo the same cache without its own key, made one by one."""

    def held_out(rows: torch.Tensor) -> torch.Tensor:
        parts = []
        for row in rows:
            rest = shots.without(row[None])
            parts.append(cache_of(rest)(shots.photos.plain[row][None], shots.text, SCALE))
        return torch.cat(parts)

    return Fit(head=cache_of(shots), record={}, curve=[], held_out=held_out, refit=cache_of)


def test_the_errors_are_those_of_the_held_out_logits(shots: Shots) -> None:
    photos, fit = shots.photos, fit_of(shots)
    document, curves = assess(shots, fit, CALIP)

    logits = SCALE * photos.plain @ shots.text.T + fit.held_out(torch.arange(len(photos.labels)))
    logits = (logits + CALIP.b2 * photos.calip[:, 0] + CALIP.b3 * photos.calip[:, 1]).numpy()
    truth = photos.labels.numpy()
    after = Confidence(temperature=document["temperature"]).probabilities(logits)
    likelihood = np.log(after[np.arange(len(truth)), truth]).mean()
    assert document["photos"] == CLASSES * EACH
    assert document["temperature"] != 1
    assert document["nll"]["after"] == pytest.approx(-likelihood, rel=1e-6)
    assert document["nll"]["after"] < document["nll"]["before"]
    assert document["ece"]["after"] == pytest.approx(calibration_error(reliability(after, truth)), rel=1e-6)
    assert "unknown" not in document
    assert sum(each["photos"] for each in curves["reliability"]) == CLASSES * EACH


def test_each_class_is_judged_by_a_classifier_without_it(shots: Shots) -> None:
    document, curves = assess(shots, fit_of(shots), CALIP, unknown_at=0.25)

    found = document["unknown"]
    confidence = Confidence(temperature=document["temperature"])
    best = []
    for held in range(CLASSES):
        others = [index for index in range(CLASSES) if index != held]
        own, rest = shots.photos.labels == held, shots.photos.labels != held
        affinity = shots.photos.plain[own] @ shots.photos.keys[rest].T
        values = torch.nn.functional.one_hot(shots.photos.labels[rest], CLASSES).float()[:, others]
        logits = SCALE * shots.photos.plain[own] @ shots.text[others].T
        logits = logits + ALPHA * (BETA * (affinity - 1)).exp() @ values
        terms = shots.photos.calip[own][:, :, others]
        logits = logits + CALIP.b2 * terms[:, 0] + CALIP.b3 * terms[:, 1]
        best.append(confidence.probabilities(logits.numpy()).max(axis=1))
    expected = np.sort(np.concatenate(best))[::-1]
    assert found["groups"] == CLASSES
    # Of 48 photos 12 may pass: the threshold lies above the thirteenth.
    assert found["threshold"] == pytest.approx(expected[12], rel=1e-5)
    assert found["false_accept"] == 0.25
    assert curves["unknown"][0] == {"threshold": 0.0, "false_accept": 1.0, "false_reject": 0.0}


def test_many_classes_are_held_out_together() -> None:
    rng = np.random.default_rng(0)
    text = torch.from_numpy(unit_vectors(rng, 45, WIDTH))
    labels = torch.arange(45).repeat_interleave(2)
    plain = torch.from_numpy(unit_vectors(rng, 90, WIDTH))
    photos = PhotoFeatures(
        labels=labels, contents=torch.arange(90), keys=plain, plain=plain, calip=torch.empty(90, 0, 45)
    )
    many = Shots(photos=photos, text=text, scale=SCALE, bias=0.0, classes=tuple(map(str, range(45))))

    document, _ = assess(many, None, None, unknown_at=0.1)

    assert (document["unknown"]["groups"], document["unknown"]["photos"]) == (20, 90)


def test_without_photos_the_probabilities_stay_as_they_are(shots: Shots) -> None:
    nothing = dataclasses.replace(shots, photos=shots.photos.rows(torch.empty(0, dtype=torch.int64)))

    document, curves = assess(nothing, None, None)

    assert document == {"temperature": 1.0, "reason": "no example photos were given"}
    assert curves == {}


def test_ready_keys_keep_the_temperature_of_1_beside_calip_and_say_why(shots: Shots) -> None:
    # Of keys without photos there are no tokens, so CALIP's terms are unknown.
    photos = dataclasses.replace(shots.photos, calip=torch.empty(CLASSES * EACH, 0, CLASSES))
    ready = dataclasses.replace(shots, photos=photos)

    document, curves = assess(ready, fit_of(ready), CALIP)
    without, _ = assess(ready, fit_of(ready), None)

    assert document["temperature"] == 1.0
    assert document["reason"].startswith("of ready keys it is not known what CALIP adds")
    assert curves == {}
    assert without["temperature"] != 1.0
    with pytest.raises(ShotsError, match=r"no threshold .* of ready keys it is not known .* Give more with --shots"):
        assess(ready, fit_of(ready), CALIP, unknown_at=0.05)


def test_a_class_of_one_photo_leaves_nothing_to_fit_a_cache_on(shots: Shots) -> None:
    one = dataclasses.replace(shots, photos=shots.photos.rows(torch.tensor([0, *range(EACH, CLASSES * EACH)])))

    document, _ = assess(one, fit_of(one), None)
    zero_shot, _ = assess(one, None, None)

    assert document["temperature"] == 1.0
    assert document["reason"].startswith("one photo only of 'class 0'")
    assert zero_shot["photos"] == 1 + EACH * (CLASSES - 1)
    with pytest.raises(ShotsError, match=r"no threshold .* one photo only of 'class 0'"):
        assess(one, fit_of(one), None, unknown_at=0.05)


def test_two_classes_are_too_few_for_a_threshold(shots: Shots) -> None:
    two, _ = shots.without_classes(torch.arange(2, CLASSES))

    with pytest.raises(ShotsError, match=r"with 2 classes.*name at least 3"):
        assess(two, None, None, unknown_at=0.05)


def test_photos_that_are_all_right_keep_the_temperature_of_1_and_say_why(shots: Shots) -> None:
    exact = shots.text[shots.photos.labels]
    clear = dataclasses.replace(shots, photos=dataclasses.replace(shots.photos, plain=exact), scale=100.0)

    document, _ = assess(clear, None, None)

    assert document["temperature"] == 1.0
    assert "the photos are all right" in document["reason"]


def test_a_share_below_one_photo_is_warned_of(shots: Shots) -> None:
    with pytest.warns(CalipsoWarning, match="48 photos tell shares down to 0.021 only"):
        assess(shots, None, None, unknown_at=0.01)


def test_certain_strangers_cannot_be_held_off(shots: Shots) -> None:
    # A scale at which the best of the other classes has all the probability there is, in 64 bits too.
    certain = dataclasses.replace(shots, scale=1e6)

    with pytest.raises(ShotsError, match=r"no threshold keeps false accepts to 0.05: \d+ of 48 photos"):
        assess(dataclasses.replace(certain, photos=_all_right(certain)), None, None, unknown_at=0.05)


def _all_right(shots: Shots) -> PhotoFeatures:
    return dataclasses.replace(shots.photos, plain=shots.text[shots.photos.labels])
