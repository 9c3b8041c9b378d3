"""Alpha and beta of a head that was taught: by the search on its own keys (test_head_search.py)."""

import dataclasses

import numpy as np
from teaching_samples import EMBED_DIM, sample_head, unit

from calipso_runtime.head.calibrate import base_logits, calibrate
from calipso_runtime.head.classes import Head


def right_when_held_out(head: Head, alpha: float, beta: float) -> int:
    """How many keys are right by what is left of the cache, one key at a time, in double."""
    right = 0
    base = base_logits(head, np.arange(len(head.keys))).astype(np.float64)
    for index, key in enumerate(head.keys.astype(np.float64)):
        logits = base[index]
        for label in range(len(head.labels)):
            own = (head.owners == label) & (np.arange(len(head.keys)) != index)
            share = head.counts[label] / max(1, own.sum())
            logits[label] += alpha * share * np.exp(-beta * (1 - head.keys[own] @ key)).sum()
        right += int(logits.argmax() == head.owners[index])
    return right


def test_what_is_chosen_answers_the_keys_as_it_says() -> None:
    head = sample_head(shots=6, seed=3).with_keys("new", unit(np.random.default_rng(3), 3, EMBED_DIM))

    found = calibrate(head)

    assert found is not None
    assert found.photos == len(head.keys)
    assert found.accuracy_with is not None
    assert abs(right_when_held_out(head, found.alpha, found.beta) - found.accuracy_with * found.photos) <= 1


def test_a_cache_that_is_no_better_is_left_out_where_every_class_has_text() -> None:
    head = sample_head(shots=2)
    perfect = head.weighed(1.0, 1.0)
    perfect = new_text(perfect, np.stack([head.keys[head.owners == index].mean(axis=0) for index in range(7)]))

    found = calibrate(perfect)

    assert found is not None
    assert found.accuracy_without == 1.0
    assert found.alpha == 0.0


def test_a_class_that_lives_in_the_cache_alone_keeps_the_cache() -> None:
    head = sample_head(shots=2).with_keys("new", unit(np.random.default_rng(0), 2, EMBED_DIM))

    found = calibrate(head)

    assert found is not None
    assert found.alpha > 0


def test_with_one_key_per_class_a_prior_decides() -> None:
    found = calibrate(sample_head(shots=1))

    assert found is not None
    assert (found.photos, found.accuracy_without, found.accuracy_with) == (0, None, None)
    assert found.alpha > 0


def test_a_cache_of_one_class_alone_cannot_be_judged() -> None:
    head = sample_head(shots=2)
    own = head.owners == 0

    assert calibrate(dataclasses.replace(head, keys=head.keys[own], owners=head.owners[own])) is None


def new_text(head: Head, text: np.ndarray) -> Head:
    text = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)
    return dataclasses.replace(head, text=text)
