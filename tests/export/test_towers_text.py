"""Text features: cut behind the last end-of-text token, and averaged over prompts as CLIP does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_samples import CLASSES, VIT, write_model

from calipso_export import ExportConfig
from calipso_export.models import LoadedModel, load_model
from calipso_export.progress import silent
from calipso_export.templates import Prompts
from calipso_export.text_weights import text_features
from calipso_export.towers.text import encode_text

TEXTS = ["a", "a photo of a tulip.", "a rather long description of a small red flower in a vase", ""]


def load(folder: Path, **text: Any) -> LoadedModel:
    path = write_model(folder / f"{folder.name}.json", {**VIT, "text_cfg": {**VIT["text_cfg"], **text}})
    return load_model(ExportConfig(model=str(path), classes=CLASSES, output=folder, random_init=1))


def assert_like_open_clip(model: LoadedModel) -> None:
    tokens = model.tokenizer(TEXTS)
    wanted = model.module.encode_text(tokens, normalize=True)

    torch.testing.assert_close(encode_text(model.module, tokens), wanted, atol=1e-6, rtol=0)


TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "three layers": {"layers": 3},
    "projection with a bias": {"proj_bias": True},
    "no projection": {"proj_type": "none"},
    "last token": {"pool_type": "last"},
    "first token": {"pool_type": "first"},
    "no causal mask": {"no_causal_mask": True},
}


@pytest.mark.parametrize("text", TEXT_TOWERS.values(), ids=TEXT_TOWERS)
def test_a_text_feature_is_open_clips(tmp_path: Path, text: dict[str, Any]) -> None:
    assert_like_open_clip(load(tmp_path, **text))


@pytest.mark.parametrize("text", [{}, {"embed_cls": True}], ids=["plain", "class token at the end"])
def test_a_separate_text_tower_is_open_clips(tmp_path: Path, text: dict[str, Any]) -> None:
    document = {**VIT, "custom_text": True, "text_cfg": {**VIT["text_cfg"], **text}}
    path = write_model(tmp_path / f"{tmp_path.name}.json", document)

    assert_like_open_clip(load_model(ExportConfig(model=str(path), classes=CLASSES, output=tmp_path, random_init=1)))


def test_a_short_batch_runs_through_the_transformer_short(vit: LoadedModel) -> None:
    lengths: list[int] = []
    transformer: Any = vit.module.transformer
    handle = transformer.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))

    encode_text(vit.module, vit.tokenizer(["a cat", "two small dogs"]))
    handle.remove()

    assert lengths == [5]


def test_a_prompt_longer_than_the_context_is_cut_like_open_clips(vit: LoadedModel) -> None:
    tokens = vit.tokenizer(["word " * 100])

    wanted = vit.module.encode_text(tokens, normalize=True)

    torch.testing.assert_close(encode_text(vit.module, tokens), wanted, atol=1e-6, rtol=0)


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts(vit: LoadedModel) -> None:
    templates = ("a photo of a {}.", "{}", "the {} in a garden at night.")
    classes = tuple(f"{'very ' * (index % 5)}thing {index}" for index in range(40))

    found = text_features(vit, classes, Prompts(source="test", templates=templates), silent)

    for name, feature in zip(classes, found.numpy(), strict=True):
        each = vit.module.encode_text(vit.tokenizer([t.replace("{}", name) for t in templates])).double().numpy()
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(feature, mean / np.linalg.norm(mean), atol=1e-6)


def test_prompts_of_each_class_may_differ_in_number(vit: LoadedModel) -> None:
    own = {"ant": ("an ant", "a tiny black insect"), "bee": ("a bee",), "crab": ("a crab", "a sea animal", "claws")}

    found = text_features(vit, CLASSES, Prompts(source="test", per_class=own), silent)

    single = vit.module.encode_text(vit.tokenizer(["a bee"]), normalize=True)
    torch.testing.assert_close(found[1:2], single, atol=1e-6, rtol=0)
    assert found.shape == (3, 32)
