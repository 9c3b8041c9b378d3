"""CALIP's centred form: every logit of a picture is lower by the same number, and low precision exports use it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export_samples import CALIP_HEADS, unit_vectors
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from precision_samples import ExportLow

import calipso_runtime
from calipso_export.heads import calip
from calipso_export.heads.calip import CalipHead, CalipParameters
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.progress import silent
from calipso_export.reverify import reverify
from calipso_runtime.graph_file import MODEL_FILE

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def sample(seed: int, *, pictures: int = 2, positions: int = 9, classes: int = 5, width: int = 8) -> Tensors:
    """Image [B,D], tokens [B,P,D] and text [K,D]."""
    rng = np.random.default_rng(seed)
    shapes = ((pictures, width), (pictures, positions, width), (classes, width))
    image, tokens, text = (torch.from_numpy(unit_vectors(rng, *shape)) for shape in shapes)
    return image, tokens, text


def answered(tensors: Tensors, parameters: CalipParameters, scale: float, *, centred: bool) -> torch.Tensor:
    image, tokens, text = tensors
    head = CalipHead(parameters, scale=scale, centred=centred)
    return head(image, tokens, ZeroShotHead(text, scale=scale).weight).detach()


@settings(max_examples=60, deadline=None)
@given(**CALIP_HEADS)
def test_the_centred_head_is_the_published_formula_less_what_is_common(
    *, seed: int, pictures: int, positions: int, classes: int, width: int, scale: float, b2: float, b3: float
) -> None:
    assume(b2 or b3)
    tensors = sample(seed, pictures=pictures, positions=positions, classes=classes, width=width)
    parameters = CalipParameters(b2=b2, b3=b3)

    found = answered(tensors, parameters, scale, centred=True)

    image, tokens, text = (tensor.double() for tensor in tensors)
    wanted = calip.reference(image, tokens, text, parameters, scale=scale)
    wanted = wanted - calip.common(image, tokens, parameters, scale=scale)
    np.testing.assert_allclose(found, wanted, atol=3e-6 * scale * (b2 + 2 * b3) + 1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), b2=st.floats(0.1, 6), b3=st.floats(0, 1))
def test_every_logit_of_a_picture_is_lower_by_the_same(seed: int, b2: float, b3: float) -> None:
    tensors, parameters = sample(seed), CalipParameters(b2=b2, b3=b3)

    plain, centred = (answered(tensors, parameters, 50.0, centred=centred) for centred in (False, True))

    taken_off = calip.common(tensors[0], tensors[1], parameters, scale=50.0)
    torch.testing.assert_close(plain - centred, taken_off.expand(2, 5), atol=1e-4 * (b2 + b3), rtol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), b2=st.floats(0.1, 3), b3=st.floats(0, 1))
def test_ranks_and_probabilities_stay(seed: int, b2: float, b3: float) -> None:
    image, tokens, text = sample(seed)
    doubles = (image.double(), tokens.double(), text.double())
    parameters = CalipParameters(b2=b2, b3=b3)

    plain, centred = (calip.reference(*doubles, parameters, scale=50.0, centred=centred) for centred in (False, True))

    torch.testing.assert_close(centred.softmax(dim=1), plain.softmax(dim=1), atol=1e-9, rtol=0)
    gaps = plain.sort(dim=1).values.diff(dim=1)
    assume(bool((gaps > 1e-9).all()))
    assert torch.equal(centred.argsort(dim=1), plain.argsort(dim=1))


def test_the_centred_terms_are_as_small_as_their_differences() -> None:
    tensors = sample(1, positions=49, classes=50, width=64)
    # Positions that resemble the whole picture, as a trained tower's do.
    image = tensors[0]
    tokens = torch.nn.functional.normalize(tensors[1] + 3 * image.unsqueeze(1), dim=-1)
    parameters = CalipParameters(b2=1.0, b3=0.0)

    plain, centred = (
        answered((image, tokens, tensors[2]), parameters, 100.0, centred=centred) for centred in (False, True)
    )

    assert plain.abs().min() > 50
    assert centred.abs().max() < 5


def test_fp32_bundles_are_not_centred_and_lower_ones_are(bundle: Path, low_bundle: ExportLow) -> None:
    paths = {"fp32": bundle, "fp16": low_bundle("fp16"), "int8-weights": low_bundle("int8-weights")}

    said = {name: json.loads((path / "manifest.json").read_text())["head"]["centred"] for name, path in paths.items()}

    assert said == {"fp32": False, "fp16": True, "int8-weights": True}


def test_the_probabilities_of_a_centred_bundle_are_those_of_fp32(bundle: Path, low_bundle: ExportLow) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)

    with calipso_runtime.load(bundle) as plain, calipso_runtime.load(low_bundle("fp16")) as centred:
        np.testing.assert_allclose(centred.probabilities(image), plain.probabilities(image), atol=0.02)
        taken_off = plain.logits(image) - centred.logits(image)

    # The same for all classes of a picture, and another for each picture.
    assert np.ptp(taken_off, axis=1).max() < 0.02
    assert np.ptp(taken_off, axis=0).max() > 0.5


@pytest.mark.parametrize("name", ["", MODEL_FILE])
def test_a_centred_bundle_and_its_bare_graph_verify_again(
    low_bundle: ExportLow, tiny_vit: Path, shots: Path, name: str
) -> None:
    path = low_bundle("fp16") / name

    parity = reverify(path, data=shots, checkpoint=None, model=str(tiny_vit), backend="ort", progress=silent)

    assert parity.failures == ()
