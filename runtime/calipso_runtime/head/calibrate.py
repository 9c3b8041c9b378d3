"""Chooses alpha and beta by leave-one-out over the keys: as the exporter does on the shots, with numpy alone.

Each key is classified by a cache that holds every key but itself and its copies. The grid is the exporter's: 200
betas x 20 alphas from 0.1 up. Two things make it quick. From beta to beta the affinities' exponentials change by a
factor that stays the same, so each is one product. And the alphas at which a photo is answered right are an
interval, between the alphas at which some class draws level: one pass over the classes finds it for all alphas.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from calipso_runtime.head.classes import Head
from calipso_runtime.head.stand_in import mean_keys

Float32 = npt.NDArray[np.float32]

BETAS = np.linspace(0.1, 20.0, 200)
ALPHAS = np.linspace(0.1, 10.0, 20)
# Where nothing can be held out: Tip-Adapter's published alpha, and the beta that it takes for most data sets.
START = {"alpha": 1.0, "beta": 5.5}
# Keys that are nearer than this are of the same picture: no other photo is as near, and rounding is 1e-6.
SAME_PICTURE = 0.99999
# Above so many exponentials the photos that are judged are sampled evenly: about half a second on one core.
_MOST_EXPONENTIALS = 1e9
# Keys times photos at a time: what is worked on stays in a core's cache.
_CHUNK_VALUES, _LEAST_PHOTOS = 1 << 17, 32
# And of what is multiplied at once, 64 MB: many small products wait for each other's threads.
_BLOCK_VALUES = 1 << 24
_LEAST_KEYS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was chosen, and why.

    Attributes:
        alpha: weight of the cache; 0 where the classifier is no worse without.
        beta: sharpness of the cache.
        photos: how many were judged.
        accuracy_without: share of them that is answered right without a cache.
        accuracy_with: and with it, as it was best.
    """

    alpha: float
    beta: float
    photos: int
    accuracy_without: float
    accuracy_with: float

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def calibrate(head: Head) -> Calibration | None:
    """Choose alpha and beta for a head; None where no class has two keys, so that nothing can be held out.

    A cache that is no better than none is left out, as an export would; not where a class lives in the cache alone.
    """
    judged = np.flatnonzero(head.counts[head.owners] >= _LEAST_KEYS)
    if len(judged) == 0:
        return None
    judged = judged[_evenly(len(judged), int(_MOST_EXPONENTIALS / (len(BETAS) * len(head.keys))))]
    base = base_logits(head, judged)
    right_without = int((base.argmax(axis=1) == head.owners[judged]).sum())
    counts = _counts(head, judged, base)
    beta_at, alpha_at = _middle_of_best(counts)
    best = int(counts[beta_at, alpha_at])
    is_kept = best > right_without or not head.has_text.all()
    return Calibration(
        alpha=round(float(ALPHAS[alpha_at]), 6) if is_kept else 0.0,
        beta=round(float(BETAS[beta_at]), 6),
        photos=len(judged),
        accuracy_without=right_without / len(judged),
        accuracy_with=best / len(judged),
    )


def base_logits(head: Head, judged: npt.NDArray[np.integer]) -> Float32:
    """float32 [V,K]: logits of some keys without the cache; a class without text is scored without the key itself."""
    features, owners = head.keys[judged], head.owners[judged]
    base: Float32 = (np.float32(head.scale) * features @ head.weights.T).astype(np.float32)
    alone = np.flatnonzero(~head.has_text[owners])
    if len(alone):
        own, count = owners[alone], head.counts[owners[alone]][:, None]
        means = mean_keys(head.keys, head.owners, own)
        rest = (means * count - features[alone]) / (count - 1)
        texts = head.stand_in.of_means(rest.astype(np.float32), head.stand_in.centre(head.keys, head.owners))
        base[alone, own] = head.scale * (features[alone] * texts).sum(axis=1)
    base += np.float32(head.bias)
    return base


def _counts(head: Head, judged: npt.NDArray[np.integer], base: Float32) -> npt.NDArray[np.int64]:
    """int64 [betas,alphas]: how many of the judged keys are answered right."""
    classes, shots = len(head.labels), max(1, int(head.counts.max()))
    # The shots first: sums over them are then sums of long rows.
    padded = np.zeros((shots, classes, head.width), np.float32)
    real = np.zeros((shots, classes), np.bool_)
    padded[head.places, head.owners], real[head.places, head.owners] = head.keys, True
    flat = padded.reshape(-1, head.width)
    counts = np.zeros((len(BETAS), len(ALPHAS)), np.int64)
    size = max(_LEAST_PHOTOS, _CHUNK_VALUES // len(flat))
    most = size * max(1, _BLOCK_VALUES // (size * len(flat)))
    for first in range(0, len(judged), most):
        rows = judged[first : first + most]
        block = (flat @ head.keys[rows].T).reshape(shots, classes, len(rows))
        block[~real] = -np.inf
        # Itself and its copies, wherever they are: held out in name only, they would vouch for it.
        block[block > SAME_PICTURE] = -np.inf
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            own = base[first + start : first + start + size]
            _count_chunk(counts, np.ascontiguousarray(block[:, :, part]), own.T, head.owners[rows[part]])
    return counts


def _count_chunk(counts: npt.NDArray[np.int64], affinity: Float32, base: Float32, truth: npt.NDArray[np.int64]) -> None:
    """Add how many of some photos are right at each beta and alpha; affinity [S,K,V], base [K,V]."""
    columns = np.arange(len(truth))
    # By how much the true class leads without a cache, and with it for each unit of alpha.
    lead = base[truth, columns] - base
    # Against itself the true class always wins.
    lead[truth, columns] = np.inf
    decay = np.exp(np.float32(BETAS[1] - BETAS[0]) * (affinity - 1))
    weights = np.exp(np.float32(BETAS[0]) * (affinity - 1))
    alphas = ALPHAS.astype(np.float32)[:, None]
    for row in range(len(BETAS)):
        cached = weights.sum(axis=0)
        gain = cached[truth, columns] - cached
        gain[truth, columns] = 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            level = -lead / gain
        lowest = np.where(gain > 0, level, -np.inf).max(axis=0)
        highest = np.where(gain < 0, level, np.inf).min(axis=0)
        level_with = gain == 0
        if level_with.any():
            # Who is not behind the true class there, is not at any alpha.
            lowest[(level_with & (lead <= 0)).any(axis=0)] = np.inf
        counts[row] += ((alphas > lowest) & (alphas < highest)).sum(axis=1)
        weights *= decay


def _evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    wanted = min(count, max(1, most))
    return np.arange(wanted) * count // wanted


def _middle_of_best(counts: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Of equally good settings the one nearest to the middle of them all: the safest place on a plateau."""
    best = np.argwhere(counts == counts.max()).astype(np.float64)
    # Rows and columns are of different lengths: distances are in shares of the grid.
    scaled = best / np.array(counts.shape, np.float64)
    nearest = int(((scaled - scaled.mean(axis=0)) ** 2).sum(axis=1).argmin())
    row, column = best[nearest].astype(int).tolist()
    return row, column
