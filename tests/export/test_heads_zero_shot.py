"""The zero-shot head equals the scaled cosine, written out."""

import numpy as np
import torch
from export_samples import unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from calipso_export.heads import zero_shot
from calipso_export.heads.zero_shot import ZeroShotHead


def published(image: np.ndarray, text: np.ndarray, scale: float, bias: float) -> np.ndarray:
    logits = np.zeros((len(image), len(text)))
    for row, feature in enumerate(image.astype(np.float64)):
        for column, name in enumerate(text.astype(np.float64)):
            logits[row, column] = scale * sum(a * b for a, b in zip(feature, name, strict=True)) + bias
    return logits


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    pictures=st.integers(1, 4),
    classes=st.integers(2, 9),
    width=st.integers(1, 24),
    scale=st.floats(0.1, 200),
    bias=st.sampled_from([0.0, -10.0, 3.5]),
)
def test_the_head_and_its_reference_are_the_scaled_cosine(
    *, seed: int, pictures: int, classes: int, width: int, scale: float, bias: float
) -> None:
    rng = np.random.default_rng(seed)
    image, text = unit_vectors(rng, pictures, width), unit_vectors(rng, classes, width)
    head = ZeroShotHead(torch.from_numpy(text), scale=scale, bias=bias)

    wanted = published(image, text, scale, bias)
    restated = zero_shot.reference(torch.from_numpy(image), torch.from_numpy(text), scale=scale, bias=bias)

    np.testing.assert_allclose(head(torch.from_numpy(image)).numpy(), wanted, atol=2e-6 * (scale + abs(bias)))
    np.testing.assert_allclose(restated.numpy(), wanted, atol=2e-6 * (scale + abs(bias)))


def test_the_text_stands_in_the_head_once_and_nothing_else_does() -> None:
    text = torch.from_numpy(unit_vectors(np.random.default_rng(0), 7, 5))

    assert [tuple(weight.shape) for weight in ZeroShotHead(text, scale=100.0).state_dict().values()] == [(5, 7)]
