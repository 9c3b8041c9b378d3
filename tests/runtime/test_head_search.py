"""The search for alpha and beta: what it counts, what a prior adds, and what it must never do."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teaching_samples import unit

from calipso_runtime.head import search
from calipso_runtime.head.search import MOST_ALPHA, MOST_BETA, US, VS, Cache, Choice, Photos, choose

WIDTH = 24


def clusters(counts: tuple[int, ...], seed: int = 0, *, near: float = 1.2) -> tuple[Cache, Photos]:
    """Photos around a centre per class, keys of the same photos, and logits that are right for some of them."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(counts)), counts)
    centres = unit(rng, len(counts), WIDTH)

    def around() -> np.ndarray:
        values = centres[owners] + near * unit(rng, len(owners), WIDTH)
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    pictures = np.arange(len(owners))
    base = (3 * rng.standard_normal((len(owners), len(counts)))).astype(np.float32)
    base[pictures, owners] += 2
    return (
        Cache(keys=around(), owners=owners, pictures=pictures),
        Photos(features=around(), truth=owners, base=base, pictures=pictures),
    )


def held_out(cache: Cache, photos: Photos, alpha: float, beta: float) -> np.ndarray:
    """Which photos are right, one photo and one key at a time, in double."""
    right = []
    for index, feature in enumerate(photos.features.astype(np.float64)):
        logits = photos.base[index].astype(np.float64)
        own = cache.pictures == photos.pictures[index]
        for label in range(photos.base.shape[1]):
            keys = cache.keys[(cache.owners == label) & ~own].astype(np.float64)
            share = (cache.owners == label).sum() / max(1, len(keys))
            logits[label] += alpha * share * np.exp(-beta * (1 - keys @ feature)).sum()
        right.append(logits.argmax() == photos.truth[index])
    return np.array(right)


@given(seed=st.integers(0, 1 << 32), counts=st.lists(st.integers(2, 5), min_size=2, max_size=4))
@settings(deadline=None, max_examples=25)
def test_the_settings_that_are_chosen_answer_as_was_counted(seed: int, counts: list[int]) -> None:
    cache, photos = clusters(tuple(counts), seed)

    found = choose(cache, photos)

    # A photo at which two classes are level within rounding may fall to either side.
    assert abs(found.right_with - held_out(cache, photos, found.alpha, found.beta).sum()) <= 1
    assert found.right_without == (photos.base.argmax(axis=1) == photos.truth).sum()
    assert found.photos == sum(counts)


@pytest.mark.parametrize("seed", range(4))
def test_hardly_any_setting_of_the_grid_is_better(seed: int) -> None:
    cache, photos = clusters((4, 4, 4), seed)

    found = choose(cache, photos)

    best = max(round(point["accuracy"] * found.photos) for point in found.curve)
    # The prior is worth two photos, and a setting counts with its neighbours.
    assert found.right_with >= best - 3


def test_a_class_is_not_at_a_disadvantage_for_the_key_that_is_held_out() -> None:
    # All cosines are the same, so the cache can tell nothing: whatever alpha, the text decides.
    same = np.full((4, WIDTH), WIDTH**-0.5, np.float32)
    owners, pictures = np.array([0, 0, 1, 1]), np.arange(4)
    base = 0.1 * np.eye(2, dtype=np.float32)[owners]

    found = choose(
        Cache(keys=same, owners=owners, pictures=pictures),
        Photos(features=same, truth=owners, base=base, pictures=pictures),
    )

    assert (found.right_without, found.right_with) == (4, 4)


def test_a_photos_own_key_never_speaks_for_it() -> None:
    # Every photo looks like its own key, and otherwise only like the keys of the other class.
    owners, pictures = np.array([0, 0, 1, 1]), np.arange(4)
    keys = np.eye(4) + 0.5 * (owners[:, None] != owners[None, :])
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)
    photos = Photos(
        features=np.eye(4, dtype=np.float32), truth=owners, base=np.zeros((4, 2), np.float32), pictures=pictures
    )

    found = choose(Cache(keys=keys, owners=owners, pictures=pictures), photos)

    assert found.right_with == 0


@pytest.mark.parametrize("known", [True, False], ids=["by its number", "by its cosine"])
def test_a_copy_of_a_photo_does_not_vouch_for_it(known: bool) -> None:
    rng = np.random.default_rng(5)
    features = unit(rng, 6, WIDTH)
    # The first class has one photo twice, and nothing else.
    features[1] = features[0]
    owners = np.array([0, 0, 1, 1, 2, 2])
    pictures = np.array([0, 0, 2, 3, 4, 5]) if known else None
    photos = Photos(features=features, truth=owners, base=np.zeros((6, 3), np.float32), pictures=pictures)

    found = choose(Cache(keys=features, owners=owners, pictures=pictures), photos)

    # Where it is known that the class has one photo, it is not judged at all; else nothing is right for it.
    assert found.photos == (4 if known else 6)
    assert found.right_with <= 4


def test_with_one_photo_of_each_class_the_prior_decides() -> None:
    cache, photos = clusters((1, 1, 1, 1))

    found = choose(cache, photos)

    assert (found.photos, found.pays, found.curve) == (0, True, ())
    assert 0 < found.alpha <= MOST_ALPHA
    assert 0 < found.beta <= MOST_BETA


def test_a_single_photo_among_others_is_not_judged() -> None:
    cache, photos = clusters((4, 1, 4))

    assert choose(cache, photos).photos == 8


@pytest.mark.parametrize("factor", [0.1, 0.5])
def test_alpha_grows_with_the_scale_of_the_logits(factor: float) -> None:
    cache, photos = clusters((5, 5, 5), near=1.0)

    one = choose(cache, photos)
    other = choose(cache, dataclasses.replace(photos, base=(factor * photos.base).astype(np.float32)))

    assert other.beta == one.beta
    assert other.alpha == pytest.approx(factor * one.alpha, rel=1e-3)


def far_from_usual() -> tuple[Cache, Photos]:
    """The text is wrong everywhere by much more than it says of itself; the keys are right."""
    cache, photos = clusters((8, 8, 8), near=0.4)
    truth = np.eye(3, dtype=np.float32)[photos.truth]
    return cache, dataclasses.replace(photos, base=-truth)


def test_the_grid_grows_where_the_best_lies_on_its_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, photos = far_from_usual()
    monkeypatch.setattr(search, "VS", VS[:4])

    grown = choose(cache, photos)
    monkeypatch.setattr(search, "_MOST_GROWTHS", 0)
    stopped = choose(cache, photos)

    assert (stopped.at_edge, grown.at_edge) == (("alpha",), ())
    assert grown.alpha > stopped.alpha


def test_a_cache_of_wrong_photos_hardly_counts() -> None:
    cache, photos = clusters((20, 20, 20), near=0.3)
    # The labels have nothing to do with the photos; the text is right about all but three.
    owners = np.random.default_rng(0).permutation(cache.owners)
    base = np.eye(3, dtype=np.float32)[owners]
    base[:3] = -base[:3]
    cache, photos = dataclasses.replace(cache, owners=owners), dataclasses.replace(photos, base=base, truth=owners)

    found = choose(cache, photos)

    assert found.right_with >= found.right_without - 2


def test_where_every_photo_is_right_anyway_a_cache_does_not_pay() -> None:
    cache, photos = clusters((3, 3, 3))
    photos = dataclasses.replace(photos, base=100 * np.eye(3, dtype=np.float32)[photos.truth])

    found = choose(cache, photos)

    assert (found.right_without, found.pays) == (9, False)


def test_validation_photos_are_judged_by_the_whole_cache() -> None:
    cache, photos = clusters((1, 3))

    found = choose(cache, dataclasses.replace(photos, are_keys=False))

    assert found.photos == 4


def test_of_very_many_photos_evenly_many_are_judged() -> None:
    cache, photos = clusters((10, 10, 10))

    found = choose(cache, photos, most_exponentials=6 * 30 * len(US))

    assert found.photos == 6
    assert found.right_without == (photos.base.argmax(axis=1) == photos.truth)[::5].sum()


def test_the_order_of_the_keys_changes_nothing() -> None:
    cache, photos = clusters((4, 3, 5))
    order = np.random.default_rng(1).permutation(12)
    mixed = Cache(keys=cache.keys[order], owners=cache.owners[order], pictures=cache.pictures[order])

    assert settings_of(choose(mixed, photos)) == pytest.approx(settings_of(choose(cache, photos)))


def test_photos_that_hardly_differ_give_settings_that_a_graph_can_hold() -> None:
    rng = np.random.default_rng(0)
    features = unit(rng, 1, WIDTH) + 1e-5 * unit(rng, 6, WIDTH)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    owners, pictures = np.repeat(np.arange(3), 2), np.arange(6)
    photos = Photos(
        features=features, truth=owners, base=rng.standard_normal((6, 3)).astype(np.float32), pictures=pictures
    )

    found = choose(Cache(keys=features, owners=owners, pictures=pictures), photos)

    assert np.isfinite([found.alpha, found.beta]).all()
    assert 0 < found.alpha <= MOST_ALPHA


def settings_of(found: Choice) -> tuple[float, float]:
    return found.alpha, found.beta
