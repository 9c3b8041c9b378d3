"""Ranges of activations: one histogram of magnitudes per value, and several ways to cut it.

A histogram has a fixed number of bins; where a value is beyond the last, neighbours are merged until it
fits. So memory does not grow with the pictures, and one pass serves all ways.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

BINS = 4096
# Of int8's and fp8's magnitudes the entropy is compared at this many levels.
_LEVELS = 128
_STEP = 32


@dataclasses.dataclass
class Histogram:
    """Magnitudes seen so far.

    Attributes:
        counts: int64 [BINS], of equal bins from 0 to `limit`.
        limit: upper end of the last bin, a power of two; 0 before the first value.
        peak: the largest magnitude.
    """

    counts: npt.NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    limit: float = 0.0
    peak: float = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count the magnitudes of an array of finite numbers."""
        magnitudes = np.abs(values.reshape(-1))
        peak = float(magnitudes.max(initial=0.0))
        self.peak = max(self.peak, peak)
        if self.limit == 0.0:
            self.limit = float(2.0 ** np.ceil(np.log2(max(peak, 2.0**-100))))
        while peak > self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        places = np.minimum((magnitudes * np.float32(BINS / self.limit)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(places, minlength=BINS)


def min_max(histogram: Histogram) -> float:
    """The largest magnitude: nothing is clipped."""
    return histogram.peak


def percentile(histogram: Histogram, *, share: float) -> float:
    """What so many of 100 magnitudes stay below."""
    total = histogram.counts.cumsum()
    place = int(np.searchsorted(total, total[-1] * (share / 100)))
    return float(min(histogram.peak, (place + 1) * histogram.limit / BINS))


def entropy(histogram: Histogram) -> float:
    """The threshold whose eight-bit histogram loses least information (Kullback-Leibler divergence).

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    counts = histogram.counts.astype(np.float64)
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 1
    thresholds = range(min(_LEVELS, used), used + 1, _STEP) if used > _LEVELS else [used]
    places = [*thresholds, used]
    losses = [_divergence(counts, place) for place in places]
    best = places[int(np.argmin(losses))]
    return float(min(histogram.peak, best * histogram.limit / BINS))


def _divergence(counts: npt.NDArray[np.float64], place: int) -> float:
    """Of the histogram clipped at a bin, from the same at `_LEVELS` levels."""
    kept = counts[:place].copy()
    kept[-1] += counts[place:].sum()
    # Level of each bin, and the mean of its occupied bins: what is left of the bins after rounding.
    level = np.arange(place) * _LEVELS // place
    occupied = counts[:place] > 0
    sums = np.bincount(level, weights=counts[:place], minlength=_LEVELS)
    sizes = np.bincount(level, weights=occupied, minlength=_LEVELS)
    coarse = np.where(occupied, (sums / np.maximum(sizes, 1))[level], 0.0)
    if not coarse.sum():
        return float("inf")
    first, second = kept / kept.sum(), coarse / coarse.sum()
    where = first > 0
    # What was clipped into an empty bin has no counterpart: a small probability instead of an infinite loss.
    return float((first[where] * np.log(first[where] / np.maximum(second[where], 1e-10))).sum())


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "min-max": min_max,
    "percentile 99.999": functools.partial(percentile, share=99.999),
    "percentile 99.99": functools.partial(percentile, share=99.99),
    "entropy": entropy,
}
