"""The CALIP head equals the loop of the paper, written out in numpy."""

import numpy as np
import pytest
import torch
from export_samples import CALIP_HEADS, unit_vectors
from hypothesis import assume, given, settings

from calipso_export.heads import calip
from calipso_export.heads.calip import CalipHead, CalipParameters
from calipso_export.heads.zero_shot import ZeroShotHead


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    raised = np.exp(values - values.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def published(
    image: np.ndarray, tokens: np.ndarray, text: np.ndarray, *, scale: float, b2: float, b3: float
) -> np.ndarray:
    """Guo et al., AAAI 2023, as released: F [D,P], T [D,K], both attentions with a factor of 2."""
    rows = []
    for f, positions in zip(image.astype(np.float64), tokens.astype(np.float64), strict=True):
        F, T = positions.T, text.astype(np.float64).T
        A = F.T @ T
        Ta = F @ softmax(2 * A, axis=0)
        V = softmax(2 * A, axis=1) @ T.T
        v = V.mean(axis=0) + V.max(axis=0)
        rows.append(b2 * scale * (f @ Ta) + b3 * scale * (v @ T))
    return np.stack(rows)


def sample(seed: int, pictures: int, positions: int, classes: int, width: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return (
        unit_vectors(rng, pictures, width),
        unit_vectors(rng, pictures, positions, width),
        unit_vectors(rng, classes, width),
    )


@settings(max_examples=60, deadline=None)
@given(**CALIP_HEADS)
def test_the_head_and_its_reference_are_the_published_loop(
    *, seed: int, pictures: int, positions: int, classes: int, width: int, scale: float, b2: float, b3: float
) -> None:
    assume(b2 or b3)
    image, tokens, text = sample(seed, pictures, positions, classes, width)
    arrays = [torch.from_numpy(values) for values in (image, tokens, text)]
    parameters = CalipParameters(b2=b2, b3=b3)
    weight = ZeroShotHead(arrays[2], scale=scale).weight

    wanted = published(image, tokens, text, scale=scale, b2=b2, b3=b3)
    answered = CalipHead(parameters, scale=scale)(arrays[0], arrays[1], weight)
    restated = calip.reference(*arrays, parameters, scale=scale)

    tolerance = 3e-6 * scale * (b2 + 2 * b3) + 1e-6
    np.testing.assert_allclose(answered.detach().numpy(), wanted, atol=tolerance)
    np.testing.assert_allclose(restated.numpy(), wanted, atol=tolerance)


def test_the_two_terms_are_those_that_b2_and_b3_weigh() -> None:
    image, tokens, text = sample(3, 2, 9, 4, 8)
    arrays = [torch.from_numpy(values) for values in (image, tokens, text)]
    weight = ZeroShotHead(arrays[2], scale=50.0).weight

    through_image, through_text = calip.terms(arrays[0], arrays[1], weight, scale=50.0)

    np.testing.assert_allclose(
        through_image.detach(), published(image, tokens, text, scale=50.0, b2=1, b3=0), atol=2e-4
    )
    np.testing.assert_allclose(through_text.detach(), published(image, tokens, text, scale=50.0, b2=0, b3=1), atol=4e-4)


@pytest.mark.parametrize(("b2", "b3"), [(0.0, 0.5), (2.0, 0.0)])
def test_a_term_with_weight_0_adds_nothing(b2: float, b3: float) -> None:
    image, tokens, text = sample(4, 2, 9, 4, 8)
    arrays = [torch.from_numpy(values) for values in (image, tokens, text)]
    head = CalipHead(CalipParameters(b2=b2, b3=b3), scale=20.0)

    answered = head(arrays[0], arrays[1], ZeroShotHead(arrays[2], scale=20.0).weight)

    np.testing.assert_allclose(answered.detach(), published(image, tokens, text, scale=20.0, b2=b2, b3=b3), atol=1e-4)


def test_the_order_of_the_positions_does_not_matter() -> None:
    image, tokens, text = (torch.from_numpy(values) for values in sample(5, 2, 16, 5, 8))
    head, weight = CalipHead(CalipParameters(b2=2.0, b3=0.3), scale=100.0), ZeroShotHead(text, scale=100.0).weight

    torch.testing.assert_close(head(image, tokens.flip(1), weight), head(image, tokens, weight), atol=1e-4, rtol=0)


def test_the_head_has_no_weights_of_its_own() -> None:
    assert not CalipHead(CalipParameters(b2=1.0, b3=0.1), scale=100.0).state_dict()


def test_a_head_that_adds_nothing_is_refused() -> None:
    image, tokens, text = (torch.from_numpy(values) for values in sample(6, 2, 9, 4, 8))

    with pytest.raises(ValueError, match="b2 and b3 are both 0"):
        CalipHead(CalipParameters(b2=0.0, b3=0.0), scale=20.0)(image, tokens, ZeroShotHead(text, scale=20.0).weight)
