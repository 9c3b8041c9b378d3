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
from calipso_runtime.errors import ShotsError

UP_TO_TUNE = STEPS[: [type(step) for step in STEPS].index(Tune) + 1]
Accuracy = Callable[[float, float], float]


@pytest.fixture
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BETAS", torch.linspace(0.5, 20, 5))
    monkeypatch.setattr(search, "ALPHAS", torch.linspace(0.1, 6, 4))
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
        for key in range(len(base)):
            if key != photo:
                cosine = float(features.plain[photo].double() @ features.keys[key].double())
                logits[features.labels[key]] += alpha * np.exp(-beta * (1 - cosine))
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
def test_the_cache_search_equals_brute_force(small_grids: None, seed: int, counts: tuple[int, ...]) -> None:
    features, base = sample(counts, seed)

    choice = search_tip_adapter(features, base, [f"{index}" for index in range(len(counts))], silent)

    assert_best(choice, search.ALPHAS, search.BETAS, lambda alpha, beta: tip_accuracy(features, base, alpha, beta))
    assert choice.record["accuracy_without"] == pytest.approx(tip_accuracy(features, base, 0, 1))


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
    for photo in range(10):
        for key in set(range(10)) - {photo}:
            cosine = features.plain[photo].double() @ features.keys[key].double()
            wanted[photo, features.labels[key]] += torch.exp(-4 * (1 - cosine))
    torch.testing.assert_close(answered.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_photos_own_key_never_speaks_for_it() -> None:
    # Every photo looks like its own key, and otherwise only like the keys of the other class.
    labels = torch.tensor([0, 0, 1, 1])
    other = (labels[:, None] != labels[None, :]).float()
    keys = torch.nn.functional.normalize(torch.eye(4) + 0.5 * other, dim=1)
    features = PhotoFeatures(
        labels=labels, contents=torch.arange(4), keys=keys, plain=torch.eye(4), calip=torch.empty(4, 0, 2)
    )
    right_with_own_key = ((20 * (features.plain @ keys.T - 1)).exp() @ torch.eye(2)[labels]).argmax(dim=1) == labels

    choice = search_tip_adapter(features, torch.zeros(4, 2), ["a", "b"], silent)

    assert right_with_own_key.all()
    assert choice.record["accuracy_with"] == 0
    assert choice.values is None


def test_a_copy_of_a_photo_does_not_speak_for_it_either() -> None:
    features, _ = sample((3, 3))
    copied = dataclasses.replace(features, contents=torch.tensor([0, 0, 2, 3, 4, 5]))

    answered = leave_one_out(copied, torch.arange(6), 4.0, 2)

    alone = (-4 * (1 - features.plain[:2] @ features.keys[2])).exp()
    torch.testing.assert_close(answered[:2, 0], alone)
    torch.testing.assert_close(answered[2:], leave_one_out(features, torch.arange(2, 6), 4.0, 2))


@pytest.mark.usefixtures("small_grids")
def test_the_plain_classifier_is_kept_where_nothing_is_better() -> None:
    features, _ = sample((3, 3, 3))
    perfect = 100 * torch.eye(3)[features.labels]

    cache = search_tip_adapter(features, perfect, list("abc"), silent)
    calip = search_calip(features, perfect, None, silent)

    assert (cache.values, calip.values) == (None, None)
    assert (cache.record["kept"], calip.record["kept"]) == (False, False)


@pytest.mark.usefixtures("small_grids")
def test_of_equally_good_settings_the_middle_one_is_taken() -> None:
    features, _ = sample((3, 3, 3))
    perfect = 100 * torch.eye(3)[features.labels]

    best = search_tip_adapter(features, perfect, list("abc"), silent).record["best"]

    assert best["beta"] == pytest.approx(float(search.BETAS[2]))
    assert best["alpha"] in [pytest.approx(float(alpha)) for alpha in search.ALPHAS[1:3]]


@pytest.mark.usefixtures("small_grids")
def test_a_best_value_at_the_end_of_its_grid_is_recorded() -> None:
    features, _ = sample((4, 4, 4))
    truth = torch.eye(3)[features.labels]
    # The right class leads by 1; the first term takes ever more of it away, the second gives none.
    hindered = dataclasses.replace(features, calip=torch.stack([-truth, torch.zeros_like(truth)], dim=1))
    # Here nothing is right before the first term is at its largest.
    helped = dataclasses.replace(features, calip=torch.stack([truth, torch.zeros_like(truth)], dim=1))

    assert search_calip(hindered, 1.4 * truth, None, silent).record["at_edge"] == []
    choice = search_calip(helped, -1.9 * truth, None, silent)
    assert (choice.record["at_edge"], choice.record["accuracy_with"]) == (["b2"], 1.0)


@pytest.mark.usefixtures("small_grids")
def test_very_many_classes_are_judged_on_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features, base = sample((10, 10, 10))
    monkeypatch.setattr(search, "_MOST_ALPHA_SUMS", 6 * base.shape[1] * len(search.BETAS) * len(search.ALPHAS))

    assert search_tip_adapter(features, base, list("abc"), silent).record["photos"] == 6


def test_a_class_with_one_photo_is_named() -> None:
    features, base = sample((2, 1, 4, 1))

    with pytest.raises(ShotsError, match=r"one photo only of 'bee', 'dog': .*or give --alpha and --beta"):
        search_tip_adapter(features, base, ["ant", "bee", "crab", "dog"], silent)


@pytest.mark.usefixtures("small_grids")
def test_very_many_photos_are_judged_on_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features, base = sample((10, 10, 10))
    monkeypatch.setattr(search, "_MOST_EXPONENTIALS", 30 * 5 * 6)

    choice = search_tip_adapter(features, base, list("abc"), silent)

    own = torch.arange(6) * 5
    assert choice.record["photos"] == 6
    before = float((base[own].argmax(dim=1) == features.labels[own]).double().mean())
    assert choice.record["accuracy_without"] == pytest.approx(before)


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
