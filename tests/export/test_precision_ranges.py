"""Histograms of magnitudes: nothing is lost when they grow, and three ways of cutting them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from calipso_export.precision.ranges import BINS, METHODS, Histogram, entropy, min_max, percentile

BATCHES = st.lists(
    arrays_of.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    min_size=1,
    max_size=6,
)


def histogram_of(*batches: np.ndarray) -> Histogram:
    found = Histogram()
    for batch in batches:
        found.add(np.asarray(batch, np.float32))
    return found


def normal(count: int = 200_000) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(count).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(batches=BATCHES)
def test_counts_survive_growing_ranges(batches: list[np.ndarray]) -> None:
    found = histogram_of(*batches)

    everything = np.abs(np.concatenate(batches))
    assert found.counts.sum() == everything.size
    assert found.peak == everything.max()
    assert found.limit >= found.peak
    assert (found.counts.shape, found.counts.dtype) == ((BINS,), np.int64)


@settings(max_examples=100, deadline=None)
@given(batches=BATCHES, below=st.integers(0, BINS - 1))
def test_every_magnitude_is_in_its_bin_or_at_its_edge(batches: list[np.ndarray], below: int) -> None:
    found = histogram_of(*batches)

    edge = (below + 1) * found.limit / BINS
    everything = np.abs(np.concatenate(batches)).astype(np.float64)
    # A power of two, counted while it was the end of the last bin, may stand one bin lower.
    assert (everything < edge).sum() <= found.counts[: below + 1].sum() <= (everything <= edge).sum()


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_batches_does_not_matter(order: int) -> None:
    values = normal(6000) * np.repeat(np.float32([0.001, 1, 300]), 2000)

    whole, parts = histogram_of(values), histogram_of(*np.split(values, 3)[::order])

    assert (parts.limit, parts.peak) == (whole.limit, whole.peak)
    np.testing.assert_array_equal(parts.counts, whole.counts)


def test_memory_does_not_grow_with_what_is_counted() -> None:
    small, large = histogram_of(normal(1)), histogram_of(*np.split(normal() * 1e6, 20))

    assert small.counts.nbytes == large.counts.nbytes == 8 * BINS


def test_a_batch_without_values_changes_nothing() -> None:
    before, after = histogram_of(normal(1000)), histogram_of(normal(1000), np.zeros(0))

    assert (before.limit, before.peak) == (after.limit, after.peak)
    np.testing.assert_array_equal(before.counts, after.counts)


def test_the_percentile_cuts_a_lone_outlier_and_min_max_keeps_it() -> None:
    values = np.append(normal(), np.float32(1000))

    found = histogram_of(values)

    assert min_max(found) == 1000
    wanted = np.percentile(np.abs(values), 99.99)
    assert percentile(found, share=99.99) == pytest.approx(wanted, abs=1.01 * found.limit / BINS)


def test_the_percentile_of_values_alike_is_that_value() -> None:
    assert percentile(histogram_of(np.full(1000, 3.0)), share=99.99) == pytest.approx(3.0, abs=4 / BINS)


def test_entropy_cuts_a_lone_outlier_too_and_keeps_the_body() -> None:
    found = histogram_of(np.append(normal(), np.float32(1000)))

    assert percentile(found, share=99.99) < np.abs(normal()).max() < entropy(found) < min_max(found)


def test_entropy_keeps_all_of_an_even_distribution() -> None:
    found = histogram_of(np.linspace(0, 1, 100_000))

    assert entropy(found) > 0.9


@settings(max_examples=40, deadline=None)
@given(batches=BATCHES)
def test_no_way_goes_beyond_the_peak_or_below_0(batches: list[np.ndarray]) -> None:
    found = histogram_of(*batches)

    for way in METHODS.values():
        assert 0 <= way(found) <= found.peak


@pytest.mark.parametrize("way", METHODS.values(), ids=METHODS)
def test_an_activation_that_is_always_0_has_the_range_0(way: object) -> None:
    assert way(histogram_of(np.zeros(100))) == 0
