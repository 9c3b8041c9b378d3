"""The Tip-Adapter head equals the published sum over the cache, in any layout."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from export_samples import unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from calipso_export.heads import tip_adapter
from calipso_export.heads.tip_adapter import TipAdapterHead, TipAdapterParameters, unfold

WIDTH = 16
COUNTS = st.lists(st.integers(1, 40), min_size=2, max_size=8)


def published(
    image: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor, *, alpha: float, beta: float
) -> np.ndarray:
    """Zhang et al., ECCV 2022: alpha exp(-beta (1 - f k')), added to the class of each key."""
    logits = np.zeros((len(image), int(labels.max()) + 1))
    for row, feature in enumerate(image.double().numpy()):
        for key, label in zip(keys.double().numpy(), labels, strict=True):
            logits[row, label] += alpha * np.exp(-beta * (1 - feature @ key))
    return logits


def cache(counts: Sequence[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys in a random order, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return torch.from_numpy(unit_vectors(rng, len(labels), WIDTH)), torch.from_numpy(labels)


def make_head(keys: torch.Tensor, labels: torch.Tensor, alpha: float = 1.0, beta: float = 5.5) -> TipAdapterHead:
    parameters = TipAdapterParameters(alpha=alpha, beta=beta)
    return TipAdapterHead(keys, labels, classes=int(labels.max()) + 1, parameters=parameters)


def queries(count: int = 3, seed: int = 9) -> torch.Tensor:
    return torch.from_numpy(unit_vectors(np.random.default_rng(seed), count, WIDTH))


def stored(head: TipAdapterHead) -> int:
    """Floats that the file will hold as keys."""
    return sum(block.keys.numel() for block in head.blocks)


@settings(max_examples=60, deadline=None)
@given(
    counts=COUNTS,
    seed=st.integers(0, 1 << 32),
    alpha=st.floats(0.01, 50),
    beta=st.floats(0.01, 20),
)
def test_the_head_and_its_reference_are_the_published_sum(
    counts: list[int], seed: int, alpha: float, beta: float
) -> None:
    keys, labels = cache(counts, seed)
    image = queries(seed=seed)
    parameters = TipAdapterParameters(alpha=alpha, beta=beta)

    wanted = published(image, keys, labels, alpha=alpha, beta=beta)
    answered = make_head(keys, labels, alpha, beta)(image)
    restated = tip_adapter.reference(image, keys, one_hot(labels, len(counts)).float(), parameters=parameters)

    # The exponent is off by a few roundings of beta.
    relative = 1e-6 * (10 + beta)
    np.testing.assert_allclose(answered.detach().numpy(), wanted, rtol=relative, atol=1e-30)
    np.testing.assert_allclose(restated.numpy(), wanted, rtol=relative, atol=1e-30)


def test_equal_shots_are_the_keys_and_nothing_else() -> None:
    keys, labels = cache([4] * 25)

    head = make_head(keys, labels)

    assert [tuple(weight.shape) for weight in head.state_dict().values()] == [(WIDTH, 100)]
    assert head.layout == ((25, 4),)


def test_one_class_with_40_shots_does_not_pad_the_others_to_40() -> None:
    keys, labels = cache([1] * 24 + [40])

    head = make_head(keys, labels)

    assert stored(head) == keys.numel()
    assert head.layout == ((24, 1), (1, 40))


@settings(max_examples=100, deadline=None)
@given(counts=COUNTS)
def test_padding_never_doubles_the_cache(counts: list[int]) -> None:
    keys, labels = cache(counts)

    assert keys.numel() <= stored(make_head(keys, labels)) < 2 * keys.numel()


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, beta=st.floats(0.05, 60))
def test_unfold_gives_the_keys_back_sorted_by_class(counts: list[int], beta: float) -> None:
    keys, labels = cache(counts)
    head = make_head(keys, labels, beta=beta)

    blocks = [block.keys.detach() for block in head.blocks]
    order = None if head.order is None else head.order.detach()
    found, found_labels = unfold(blocks, head.layout, order, beta=beta)

    by_class = labels.argsort(stable=True)
    torch.testing.assert_close(found, keys[by_class], atol=1e-6, rtol=1e-6)
    assert torch.equal(found_labels, labels[by_class])


@pytest.mark.parametrize("counts", [[3, 3, 3], [1, 9, 30]])
def test_the_order_of_the_keys_does_not_matter(counts: list[int]) -> None:
    keys, labels = cache(counts)
    other = torch.randperm(len(keys), generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(make_head(keys[other], labels[other])(queries()), make_head(keys, labels)(queries()))


@pytest.mark.parametrize("counts", [[2, 2], [1, 40]])
def test_beta_50_stays_finite_and_right(counts: list[int]) -> None:
    keys, labels = cache(counts)
    image = torch.cat([keys[:2], -keys[:2], queries()])

    answered = make_head(keys, labels, alpha=1.17, beta=50.0)(image).detach()

    wanted = published(image, keys, labels, alpha=1.17, beta=50.0)
    assert torch.isfinite(answered).all()
    np.testing.assert_allclose(answered, wanted, rtol=1e-4, atol=1e-20)


def test_a_padding_key_adds_nothing_even_at_a_small_beta() -> None:
    keys, labels = cache([4, 3, 4, 4])
    head = make_head(keys, labels, beta=0.1)

    assert head.layout == ((4, 4),)
    wanted = published(queries(), keys, labels, alpha=1.0, beta=0.1)
    np.testing.assert_allclose(head(queries()).detach(), wanted, rtol=1e-5)
