"""Numbers out of raw samples: percentiles, and bootstrap intervals of medians and of their ratios.

Resampling a sorted sample of n and taking its median is drawing order statistics of n uniform
places: the m-th smallest of them is Beta(m, n + 1 - m). So resampled medians are drawn directly,
whatever n is, and are distributed exactly as if the samples had been drawn again.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# A coefficient of variation above this is reported as unstable.
UNSTABLE_CV = 0.10
LEVEL = 0.95
_RESAMPLES = 10_000
_SEED = 20_230_207

Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Of one contender's samples in one cell; cv is the standard deviation over the mean."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    cv: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of two medians, and its bootstrap interval."""

    ratio: float
    low: float
    high: float


def summary(samples_ms: Sequence[float]) -> Summary:
    """Describe samples.

    Raises:
        ValueError: there are none.
    """
    values = _checked(samples_ms)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Summary(count=len(values), mean_ms=mean, p50_ms=p50, p90_ms=p90, p95_ms=p95, p99_ms=p99, cv=deviation / mean)


def median_interval(samples: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Bootstrap interval of the median.

    Raises:
        ValueError: there are no samples.
    """
    medians = resampled_medians(_checked(samples), np.random.default_rng(_SEED))
    return interval(medians, level)


def ratio_interval(numerator: Sequence[float], denominator: Sequence[float], level: float = LEVEL) -> Ratio:
    """Ratio of the medians of two independent samples, with its bootstrap interval.

    Raises:
        ValueError: one of them is empty.
    """
    above, below = _checked(numerator), _checked(denominator)
    generator = np.random.default_rng(_SEED)
    low, high = interval(resampled_medians(above, generator) / resampled_medians(below, generator), level)
    return Ratio(ratio=float(np.median(above) / np.median(below)), low=low, high=high)


def is_settled(samples: Sequence[float], half_width: float) -> bool:
    """Whether the median's interval lies within `half_width` of it, relative."""
    low, high = median_interval(samples)
    median = float(np.median(np.asarray(samples)))
    return high - median <= half_width * median and median - low <= half_width * median


def resampled_medians(values: Float64, generator: np.random.Generator) -> Float64:
    """Medians as they would be, had the samples been drawn again: float64 [10000]."""
    ordered, count = np.sort(values), len(values)
    lower = (count + 1) // 2
    first = generator.beta(lower, count + 1 - lower, _RESAMPLES)
    medians: Float64 = ordered[_place(first, count)]
    if count % 2 == 0:
        # The next larger of the remaining uniform draws, given the first.
        second = first + (1 - first) * generator.beta(1, count - lower, _RESAMPLES)
        medians = (medians + ordered[_place(second, count)]) / 2
    return medians


def interval(resampled: Float64, level: float = LEVEL) -> tuple[float, float]:
    """What the middle share of resampled values lies between."""
    tail = 50 * (1 - level)
    low, high = np.percentile(resampled, (tail, 100 - tail))
    return float(low), float(high)


def _place(uniform: Float64, count: int) -> npt.NDArray[np.int64]:
    return np.minimum((uniform * count).astype(np.int64), count - 1)


def _checked(samples: Sequence[float]) -> Float64:
    if len(samples) == 0:
        message = "there are no samples"
        raise ValueError(message)
    return np.asarray(samples, np.float64)
