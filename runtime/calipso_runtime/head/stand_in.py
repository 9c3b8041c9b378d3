"""What takes the place of a text feature that is not there: a class that was taught from photos alone.

Its photos say where it lies among the images, and CLIP's texts lie elsewhere: a cosine of two images is around 0.8,
of an image and its text around 0.3. A row of zeros would never win, the mean of the keys always would. So the
mean key p of the class is moved to where the texts are, and shrunk to how far texts of classes are apart:

    t = mean text + gain (p - mean of the classes' mean keys)

with the gain that gives a photo the same mean margin over the other classes by mean keys (without itself) as the
real texts give it. All three numbers are of the exported classes that have both; nothing taught later moves them.
On real CLIP features (docs/teach.md) a class known by 4 or 16 photos so scores about as its text would have it.
"""

import dataclasses
from typing import cast

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
# Where the exported classes cannot tell: what ViT-B/32 has on 35 classes of Caltech-101.
DEFAULT_GAIN = 0.45
# Of photos and classes it takes as much to measure a gain.
_LEAST = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandIn:
    """How the mean key of a class becomes a text feature.

    Attributes:
        text_mean: float32 [D], of the exported text features.
        key_mean: float32 [D], of the mean keys of the exported classes; None where those have no keys.
        gain: how far apart texts are, over how far mean keys are.
    """

    text_mean: Float32
    key_mean: Float32 | None
    gain: float

    @classmethod
    def of(cls, text: Float32, keys: Float32, owners: npt.NDArray[np.int64]) -> "StandIn":
        """Measure it on classes that have both.

        Args:
            text: float32 [K,D], L2-normalised.
            keys: float32 [M,D], L2-normalised, sorted by class.
            owners: int64 [M].
        """
        if len(keys) == 0:
            return cls(text_mean=text.mean(axis=0), key_mean=None, gain=DEFAULT_GAIN)
        known, counts = np.unique(owners, return_counts=True)
        means = mean_keys(keys, owners, known)
        return cls(
            text_mean=text[known].mean(axis=0), key_mean=means.mean(axis=0), gain=_gain(text, keys, owners, counts)
        )

    def fill(
        self, text: Float32, has_text: npt.NDArray[np.bool_], keys: Float32, owners: npt.NDArray[np.int64]
    ) -> Float32:
        """float32 [K,D]: the text features, with those of classes without one made of their mean keys."""
        missing = np.flatnonzero(~has_text)
        if len(missing) == 0:
            return text
        filled = text.copy()
        filled[missing] = self.of_means(mean_keys(keys, owners, missing), self.centre(keys, owners))
        return filled

    def of_means(self, means: Float32, centre: Float32) -> Float32:
        """float32 [N,D]: what stands in for classes with these mean keys."""
        return (self.text_mean + np.float32(self.gain) * (means - centre)).astype(np.float32)

    def centre(self, keys: Float32, owners: npt.NDArray[np.int64]) -> Float32:
        """Mean of the mean keys: of the exported classes, or of those there are where the exported ones have none."""
        return mean_keys(keys, owners, np.unique(owners)).mean(axis=0) if self.key_mean is None else self.key_mean


def mean_keys(keys: Float32, owners: npt.NDArray[np.int64], classes: npt.NDArray[np.integer]) -> Float32:
    """float32 [N,D]: the mean key of each of some classes; keys are sorted by class."""
    starts = np.searchsorted(owners, classes, side="left")
    ends = np.searchsorted(owners, classes, side="right")
    return np.stack([keys[start:end].mean(axis=0) for start, end in zip(starts, ends, strict=True)])


def _gain(text: Float32, keys: Float32, owners: npt.NDArray[np.int64], counts: npt.NDArray[np.integer]) -> float:
    """Mean margin of the texts over that of the mean keys, on photos of classes that have two or more."""
    known = np.unique(owners)
    own = np.searchsorted(known, owners)
    judged = counts[own] >= _LEAST
    if len(known) < _LEAST or not judged.any():
        return DEFAULT_GAIN
    features, own, count = keys[judged], own[judged], counts[own][judged]
    means = mean_keys(keys, owners, known)
    texts_at, keys_at = _dots(features, text[known][own]), _dots(features, means[own])
    # Without itself.
    held_out_at = (keys_at * count - _dots(features, features)) / (count - 1)
    # Of the sum over all classes the sum of their vectors is enough: no [M,K] is made.
    others_text = (features @ text[known].sum(axis=0) - texts_at) / (len(known) - 1)
    others_keys = (features @ means.sum(axis=0) - keys_at) / (len(known) - 1)
    margins = [float((texts_at - others_text).mean()), float((held_out_at - others_keys).mean())]
    # Photos that no text or no photo tells apart measure nothing.
    return margins[0] / margins[1] if min(margins) > 0 else DEFAULT_GAIN


def _dots(first: Float32, second: Float32) -> Float32:
    """float32 [N]: row by row."""
    return cast("Float32", np.einsum("nd,nd->n", first, second))
