"""The search for alpha, beta, b2 and b3: leave-one-out, equal to brute force, and never on test data."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_samples import MakeConfig, unit_vectors, write_shots

from calipso_export.fewshot import search
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.search import Choice, leave_one_out, search_calip, search_tip_adapter
from calipso_export.pipeline import run_steps
from calipso_export.progress import silent
from calipso_export.steps import STEPS
from calipso_export.steps.tune import HeadRecord, Tune
from calipso_runtime.head import search as head_search

UP_TO_TUNE = STEPS[: [type(step) for step in STEPS].index(Tune) + 1]
Accuracy = Callable[[float, float], float]


@pytest.fixture
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "B2S", torch.linspace(0.01, 2, 4))
    monkeypatch.setattr(search, "B3S", torch.linspace(0.01, 0.5, 5))


def sample(counts: tuple[int, ...], seed: int = 0, spread: float = 1.2) -> tuple[PhotoFeatures, torch.Tensor]:
    """Photos around a centre per class, and logits that are right for some of them."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = unit_vectors(rng, len(counts), 12)
    scattered = [
        torch.nn.functional.normalize(
            torch.from_numpy(centres[labels] + spread * unit_vectors(rng, len(labels), 12)), dim=1
        )
        for _ in range(2)
    ]
    features = PhotoFeatures(
        labels=torch.from_numpy(labels),
        contents=torch.arange(len(labels)),
        keys=scattered[0],
        plain=scattered[1],
        calip=torch.from_numpy(3 * rng.standard_normal((len(labels), 2, len(counts))).astype(np.float32)),
    )
    base = torch.from_numpy(rng.standard_normal((len(labels), len(counts))).astype(np.float32))
    return features, base


def tip_accuracy(features: PhotoFeatures, base: torch.Tensor, alpha: float, beta: float) -> float:
    """Each photo by a cache of all others, photo by photo and key by key."""
    right = 0
    for photo in range(len(base)):
        logits = base[photo].double().numpy().copy()
        shots = int((features.labels == features.labels[photo]).sum())
        for key in range(len(base)):
            if key != photo:
                cosine = float(features.plain[photo].double() @ features.keys[key].double())
                # What is left of the photo's own class counts for all of it.
                share = shots / (shots - 1) if features.labels[key] == features.labels[photo] else 1
                logits[features.labels[key]] += alpha * share * np.exp(-beta * (1 - cosine))
        right += int(logits.argmax() == features.labels[photo])
    return right / len(base)


def calip_accuracy(features: PhotoFeatures, base: torch.Tensor, b2: float, b3: float) -> float:
    right = 0
    for photo in range(len(base)):
        logits = base[photo] + b2 * features.calip[photo, 0] + b3 * features.calip[photo, 1]
        right += int(logits.argmax() == features.labels[photo])
    return right / len(base)


def assert_best(choice: Choice, first: torch.Tensor, second: torch.Tensor, accuracy: Accuracy) -> None:
    """The choice is as good as any on the grid, and its record and curve say the truth."""
    table = [[accuracy(float(a), float(b)) for b in second] for a in first]
    best = choice.record["best"]
    assert choice.record["accuracy_with"] == pytest.approx(np.max(table))
    assert accuracy(*best.values()) == pytest.approx(np.max(table))
    # The curve runs along one parameter, beta or b2, at the best value of the other.
    along = np.max(table, axis=0 if "alpha" in best else 1)
    assert [point["accuracy"] for point in choice.curve] == pytest.approx(list(along))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [(3, 3, 3), (2, 7, 4, 2)])
def test_the_accuracies_of_the_record_are_those_of_the_settings(seed: int, counts: tuple[int, ...]) -> None:
    features, base = sample(counts, seed)

    record = search_tip_adapter(features, base, silent).record

    assert record["accuracy_with"] == pytest.approx(tip_accuracy(features, base, **record["best"]), abs=1 / len(base))
    assert record["accuracy_without"] == pytest.approx(tip_accuracy(features, base, 0, 1))
    assert record["photos"] == sum(counts)


@pytest.mark.parametrize("seed", range(4))
def test_the_calip_search_equals_brute_force(small_grids: None, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, base = sample((4, 5, 3), seed)
    monkeypatch.setattr(search, "_CHUNK_VALUES", 3 * base.numel())

    choice = search_calip(features, base, None, silent)

    assert_best(choice, search.B2S, search.B3S, lambda b2, b3: calip_accuracy(features, base, b2, b3))
    assert choice.record["accuracy_without"] == pytest.approx(calip_accuracy(features, base, 0, 0))


def test_leave_one_out_is_the_sum_over_all_other_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = sample((3, 1, 6))
    monkeypatch.setattr(search, "_CHUNK_VALUES", 25)

    answered = leave_one_out(features, torch.arange(10), 4.0, 3)

    wanted = torch.zeros(10, 3, dtype=torch.float64)
    shots = (3, 1, 6)
    for photo in range(10):
        for key in set(range(10)) - {photo}:
            cosine = features.plain[photo].double() @ features.keys[key].double()
            wanted[photo, features.labels[key]] += torch.exp(-4 * (1 - cosine))
        own = int(features.labels[photo])
        # What is left of its own class counts for all of it.
        wanted[photo, own] *= shots[own] / max(1, shots[own] - 1)
    torch.testing.assert_close(answered.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_photo_that_is_held_out_does_not_handicap_its_class() -> None:
    same = torch.nn.functional.normalize(torch.ones(4, 8), dim=1)
    features = PhotoFeatures(
        labels=torch.tensor([0, 0, 1, 1]),
        contents=torch.arange(4),
        keys=same,
        plain=same,
        calip=torch.empty(4, 0, 2),
    )

    answered = leave_one_out(features, torch.arange(4), 1.0, 2)

    torch.testing.assert_close(answered, torch.full((4, 2), 2.0))


def test_a_copy_of_a_photo_does_not_speak_for_it_either() -> None:
    features, _ = sample((3, 3))
    copied = dataclasses.replace(features, contents=torch.tensor([0, 0, 2, 3, 4, 5]))

    answered = leave_one_out(copied, torch.arange(6), 4.0, 2)

    # Of three keys two are held out: what is left counts for all three.
    alone = 3 * (-4 * (1 - features.plain[:2] @ features.keys[2])).exp()
    torch.testing.assert_close(answered[:2, 0], alone)
    torch.testing.assert_close(answered[2:], leave_one_out(features, torch.arange(2, 6), 4.0, 2))


@pytest.mark.usefixtures("small_grids")
def test_the_plain_classifier_is_kept_where_nothing_is_better() -> None:
    features, _ = sample((3, 3, 3))
    perfect = 100 * torch.eye(3)[features.labels]

    cache = search_tip_adapter(features, perfect, silent)
    calip = search_calip(features, perfect, None, silent)

    assert (cache.values, calip.values) == (None, None)
    assert (cache.record["kept"], calip.record["kept"]) == (False, False)


@pytest.mark.usefixtures("small_grids")
def test_of_equally_good_settings_the_middle_one_is_taken() -> None:
    features, _ = sample((3, 3, 3))
    perfect = 100 * torch.eye(3)[features.labels]
    # Nothing that CALIP adds can change an answer.
    best = search_calip(features, perfect, None, silent).record["best"]

    assert best["b2"] in [pytest.approx(float(b2), abs=1e-6) for b2 in search.B2S[1:3]]
    assert best["b3"] == pytest.approx(float(search.B3S[2]), abs=1e-6)


@pytest.mark.usefixtures("small_grids")
def test_the_grid_grows_where_its_best_value_is_the_last() -> None:
    features, _ = sample((4, 4, 4))
    truth = torch.eye(3)[features.labels]
    # The right class leads by 1; the first term takes ever more of it away, the second gives none.
    hindered = dataclasses.replace(features, calip=torch.stack([-truth, torch.zeros_like(truth)], dim=1))
    # Here nothing is right before the first term is at its largest.
    helped = dataclasses.replace(features, calip=torch.stack([truth, torch.zeros_like(truth)], dim=1))

    assert search_calip(hindered, 1.4 * truth, None, silent).record["at_edge"] == []

    # 2 is the end of the grid that is tried first; one photo after the other is right beyond its own b2.
    def behind(most: float) -> torch.Tensor:
        return -torch.from_numpy(np.geomspace(1.5, most, len(truth))).float()[:, None] * truth

    grown = search_calip(helped, behind(5.9), None, silent)
    assert (grown.record["at_edge"], grown.record["accuracy_with"]) == ([], 1.0)
    assert grown.record["best"]["b2"] > 5.9
    too_far = search_calip(helped, behind(60), None, silent)
    assert too_far.record["at_edge"] == ["b2"]


def test_very_many_photos_are_judged_on_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features, base = sample((10, 10, 10))
    monkeypatch.setattr(search, "_MOST_EXPONENTIALS", 30 * 6 * len(head_search.US))

    choice = search_tip_adapter(features, base, silent)

    own = torch.arange(6) * 5
    assert choice.record["photos"] == 6
    before = float((base[own].argmax(dim=1) == features.labels[own]).double().mean())
    assert choice.record["accuracy_without"] == pytest.approx(before)


def test_of_single_photos_a_prior_chooses() -> None:
    features, base = sample((1, 1, 1))

    choice = search_tip_adapter(features, base, silent)

    assert choice.values == choice.record["best"]
    assert (choice.record["photos"], choice.record["kept"]) == (0, True)


@pytest.mark.parametrize("copied", [False, True], ids=["one photo", "copies of one photo"])
def test_calip_is_searched_without_a_cache_that_knows_nothing_of_a_class(copied: bool) -> None:
    features, base = sample((4, 2 if copied else 1, 3), 1)
    if copied:
        features = dataclasses.replace(features, contents=torch.tensor([0, 1, 2, 3, 4, 4, 6, 7, 8]))

    def never(rows: torch.Tensor) -> torch.Tensor:
        raise AssertionError(rows)

    assert search_calip(features, base, never, silent) == search_calip(features, base, None, silent)


@pytest.mark.usefixtures("small_grids")
def test_the_labels_of_the_pictures_to_verify_on_change_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    right = write_shots(tmp_path / "right", count=2)
    wrong = write_shots(tmp_path / "wrong", ("bee", "crab", "ant"), count=2)
    searched = dict.fromkeys(("alpha", "beta", "b2", "b3"))

    heads = [
        run_steps(UP_TO_TUNE, make_config(verify_data=data, **searched, output=tmp_path / f"{name}.out"), silent)
        for name, data in (("right", right), ("wrong", wrong))
    ]

    assert heads[0][HeadRecord].document == heads[1][HeadRecord].document
    assert heads[0][HeadRecord].document["tip_adapter"]["chosen"]["photos"] == 9


@pytest.mark.usefixtures("small_grids")
def test_calip_is_searched_on_top_of_the_cache_as_it_will_be() -> None:
    features, base = sample((4, 5, 3), 1)

    def cache(rows: torch.Tensor) -> torch.Tensor:
        return 2.0 * leave_one_out(features, rows, 5.5, base.shape[1])

    cached = base + cache(torch.arange(len(base)))

    assert search_calip(features, base, cache, silent) == search_calip(features, cached, None, silent)


def test_the_calip_search_is_given_the_cache_that_ships(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[PhotoFeatures, Callable[[torch.Tensor], torch.Tensor] | None]] = []

    def note(features: PhotoFeatures, _base: torch.Tensor, few_shot: Any, _progress: object) -> Choice:
        given.append((features, few_shot))
        return Choice(values=None, record={"best": {"b2": 1.0, "b3": 0.1}}, curve=[])

    monkeypatch.setattr("calipso_export.steps.tune.search_calip", note)
    config = make_config(alpha=2.0, beta=5.5, b2=None, b3=None)
    without = {"cache": False, "alpha": None, "beta": None}
    for number, changes in enumerate(({}, without)):
        run_steps(UP_TO_TUNE, dataclasses.replace(config, **changes, output=tmp_path / f"{number}"), silent)

    (features, cache), (_, nothing) = given
    rows = torch.tensor([0, 4])
    assert cache is not None
    torch.testing.assert_close(cache(rows), 2.0 * leave_one_out(features, rows, 5.5, 3))
    assert nothing is None
