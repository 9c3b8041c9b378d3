"""Chooses alpha and beta of a head that was taught: by the exporter's search, on the head's own keys."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from calipso_runtime.head.classes import Head
from calipso_runtime.head.search import Cache, Photos, choose, judged_rows
from calipso_runtime.head.stand_in import mean_keys

Float32 = npt.NDArray[np.float32]
_LEAST_CLASSES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was chosen for a taught head, and why.

    Attributes:
        alpha: weight of the cache; 0 where it does not pay.
        beta: sharpness of the cache.
        photos: how many were judged; 0 where no class has two, and a prior decided.
        accuracy_without: share of them that is answered right without a cache; None where none was judged.
        accuracy_with: and with it.
    """

    alpha: float
    beta: float
    photos: int
    accuracy_without: float | None
    accuracy_with: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def calibrate(head: Head) -> Calibration | None:
    """Choose alpha and beta for a head; None where fewer than two classes have keys.

    A cache that does not pay is left out, as an export would; not where a class lives in the cache alone.
    """
    if len(np.unique(head.owners)) < _LEAST_CLASSES:
        return None
    # Logits of the photos that will be judged alone: of very many keys all of them would take longer than the search.
    rows = judged_rows(head.counts[head.owners] > 1, len(head.keys))
    photos = Photos(features=head.keys[rows], truth=head.owners[rows], base=base_logits(head, rows))
    choice = choose(Cache(keys=head.keys, owners=head.owners), photos)
    is_kept = choice.pays or not head.has_text.all()
    return Calibration(
        alpha=choice.alpha if is_kept else 0.0,
        beta=choice.beta,
        photos=choice.photos,
        accuracy_without=choice.right_without / choice.photos if choice.photos else None,
        accuracy_with=choice.right_with / choice.photos if choice.photos else None,
    )


def base_logits(head: Head, judged: npt.NDArray[np.integer]) -> Float32:
    """float32 [V,K]: logits of some keys without the cache; a class without text is scored without the key itself."""
    features, owners = head.keys[judged], head.owners[judged]
    base: Float32 = (np.float32(head.scale) * features @ head.weights.T).astype(np.float32)
    alone = np.flatnonzero(~head.has_text[owners] & (head.counts[owners] > 1))
    if len(alone):
        own, count = owners[alone], head.counts[owners[alone]][:, None]
        means = mean_keys(head.keys, head.owners, own)
        rest = (means * count - features[alone]) / (count - 1)
        texts = head.stand_in.of_means(rest.astype(np.float32), head.stand_in.centre(head.keys, head.owners))
        base[alone, own] = head.scale * (features[alone] * texts).sum(axis=1)
    base += np.float32(head.bias)
    return base
