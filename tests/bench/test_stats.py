"""Numbers out of raw samples."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from calipso_bench.stats import is_settled, median_interval, ratio_interval, summary


def log_normal(count: int, *, seed: int = 0) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).lognormal(3, 0.2, count)]


def test_a_summary_is_numpys_percentiles_and_the_sample_deviation() -> None:
    found = summary([1.0, 2.0, 3.0, 4.0])

    assert (found.count, found.mean_ms, found.p50_ms) == (4, 2.5, 2.5)
    assert found.p99_ms == pytest.approx(3.97)
    assert found.cv == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2.5)


def test_one_sample_has_no_variation() -> None:
    found = summary([7.0])

    assert (found.p50_ms, found.p99_ms, found.cv) == (7.0, 7.0, 0.0)
    assert median_interval([7.0]) == (7.0, 7.0)


def test_no_samples_are_an_error_and_not_zero() -> None:
    with pytest.raises(ValueError, match="there are no samples"):
        summary([])
    with pytest.raises(ValueError, match="there are no samples"):
        ratio_interval([1.0], [])


@pytest.mark.parametrize("count", [9, 10, 61, 100])
def test_the_interval_is_that_of_a_bootstrap_which_draws_the_samples_again(count: int) -> None:
    samples = log_normal(count)

    drawn = scipy_stats.bootstrap(
        (np.array(samples),), np.median, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval

    low, high = median_interval(samples)
    spread = max(samples) - min(samples)
    assert low == pytest.approx(drawn.low, abs=0.02 * spread)
    assert high == pytest.approx(drawn.high, abs=0.02 * spread)


def test_the_interval_is_the_same_each_time() -> None:
    assert median_interval(log_normal(50)) == median_interval(log_normal(50))


def test_the_median_is_covered_about_as_often_as_promised() -> None:
    intervals = [median_interval(log_normal(40, seed=seed)) for seed in range(300)]

    covered = np.mean([low <= np.exp(3) <= high for low, high in intervals])

    assert 0.91 < covered < 0.99


def test_a_ratio_of_equal_samples_is_one_with_one_inside() -> None:
    found = ratio_interval(log_normal(200, seed=1), log_normal(200, seed=2))

    assert found.low < 1 < found.high
    assert found.ratio == pytest.approx(1, abs=0.1)


def test_a_clear_difference_lies_outside_the_interval() -> None:
    slow = log_normal(100)

    found = ratio_interval([value / 2 for value in slow], slow)

    assert found.ratio == 0.5
    assert 0.4 < found.low < 0.5 < found.high < 0.6


def test_few_scattered_samples_are_not_settled_and_many_even_ones_are() -> None:
    assert not is_settled([1.0, 2.0, 3.0], 0.02)
    assert is_settled([100.0 + place % 3 for place in range(60)], 0.02)
