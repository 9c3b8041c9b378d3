"""What engines without torch share end to end: the runtime's own preprocessing, and the best classes."""

from collections.abc import Sequence

import numpy as np

from calipso_bench.contenders import Float32
from calipso_runtime import pictures as decoder
from calipso_runtime.bundle import Preprocess


def preprocessed(pictures: Sequence[bytes], preprocess: Preprocess) -> Float32:
    """Encoded pictures -> float32 [B,3,H,W], normalised."""
    return np.stack(
        [decoder.decode(picture, preprocess, name=f"picture {place}") for place, picture in enumerate(pictures)]
    )


def best(logits: Float32, top: int) -> list[list[int]]:
    """Indices of the `top` largest logits of each row, largest first; equal ones in the order of the classes."""
    indices: list[list[int]] = np.argsort(-logits, axis=1, kind="stable")[:, :top].tolist()
    return indices
