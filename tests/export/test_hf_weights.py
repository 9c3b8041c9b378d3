"""Weights of transformers' CLIPModel and SiglipModel: loaded into open_clip, they answer as transformers does."""

import json
from pathlib import Path

import pytest
import torch
from export_samples import CLASSES, write_model

from calipso_export import ExportConfig
from calipso_export.models import LoadedModel, load_model
from calipso_runtime.errors import ModelError

transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install '.[hf]'")

WIDTH, LAYERS, HEADS, SIZE, PATCH, VOCABULARY, LENGTH = 32, 2, 2, 32, 8, 64, 16
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS, "head_width": 16},
    "text_cfg": {
        "context_length": LENGTH,
        "vocab_size": VOCABULARY,
        "width": WIDTH,
        "heads": HEADS,
        "layers": LAYERS,
    },
}
# The smallest that timm has; open_clip's own configuration of it, with a smaller text tower.
SIGLIP = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": LENGTH,
        "vocab_size": VOCABULARY,
        "width": 768,
        "heads": 12,
        "layers": LAYERS,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}


def clip() -> torch.nn.Module:
    text = {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "eos_token_id": VOCABULARY - 1}
    config = transformers.CLIPConfig(
        text_config={**text, "hidden_act": "quick_gelu", "bos_token_id": 0, "pad_token_id": 1},
        vision_config={**TOWER, "image_size": SIZE, "patch_size": PATCH, "hidden_act": "quick_gelu"},
        projection_dim=24,
    )
    torch.manual_seed(0)
    return transformers.CLIPModel(config).eval()


def load(folder: Path, checkpoint: Path, document: dict[str, object]) -> LoadedModel:
    model = write_model(folder / f"tiny-{folder.name}.json", document)
    return load_model(
        ExportConfig(model=str(model), classes=CLASSES, output=Path("unused"), checkpoint=checkpoint),
        encodes_text=False,
    )


def features(found: object) -> torch.Tensor:
    """transformers 5 returns an output with the projected features in it."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


@torch.no_grad()
def test_a_clip_model_answers_as_it_does_in_transformers(tmp_path: Path) -> None:
    theirs = clip()
    theirs.save_pretrained(tmp_path / "hf")

    ours = load(tmp_path, tmp_path / "hf", CLIP)

    images = torch.randn(3, 3, SIZE, SIZE)
    texts = torch.randint(2, VOCABULARY - 1, (3, LENGTH))
    # Both take the features at the largest token, the end of the text.
    texts[:, 9] = VOCABULARY - 1
    texts[:, 10:] = 1
    wanted = theirs(input_ids=texts, pixel_values=images)
    torch.testing.assert_close(
        ours.encode_image(images), features(theirs.get_image_features(images)), atol=1e-5, rtol=0
    )
    ours_text = torch.nn.functional.normalize(ours.module.encode_text(texts), dim=1)
    torch.testing.assert_close(ours_text, wanted.text_embeds, atol=1e-5, rtol=0)
    assert ours.scale == pytest.approx(float(theirs.logit_scale.exp()))


@pytest.mark.parametrize("before", ["", "model.", "module.clip_model."])
@torch.no_grad()
def test_whatever_stands_before_the_names_changes_nothing(tmp_path: Path, before: str) -> None:
    theirs = clip()
    torch.save({f"{before}{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "weights.pt")

    ours = load(tmp_path, tmp_path / "weights.pt", CLIP)

    images = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(
        ours.encode_image(images), features(theirs.get_image_features(images)), atol=1e-5, rtol=0
    )


def test_an_activation_that_differs_from_the_one_in_their_configuration_is_refused(tmp_path: Path) -> None:
    clip().save_pretrained(tmp_path / "hf")

    with pytest.raises(ModelError, match="QuickGELU"):
        load(tmp_path, tmp_path / "hf", {**CLIP, "quick_gelu": False})


@pytest.mark.parametrize("content", ["[]", "{", '{"model_type": "a run of mine", "vision_config": 3}'])
def test_a_config_json_that_is_not_transformers_says_nothing(tmp_path: Path, content: str) -> None:
    torch.save(clip().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text(content)

    assert load(tmp_path, tmp_path / "weights.pt", CLIP).preprocess_source == "open_clip's default"


@pytest.mark.slow
@torch.no_grad()
def test_a_siglip_model_answers_as_it_does_in_transformers(tmp_path: Path) -> None:
    tower = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    config = transformers.SiglipConfig(
        text_config={**tower, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH},
        # timm computes GELU by the error function, transformers with tanh unless it is told otherwise.
        vision_config={**tower, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16, "hidden_act": "gelu"},
    )
    torch.manual_seed(0)
    theirs = transformers.SiglipModel(config).eval()
    theirs.logit_scale.fill_(4.7)
    theirs.save_pretrained(tmp_path / "hf")
    told = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(told))

    ours = load(tmp_path, tmp_path / "hf", SIGLIP)

    assert (ours.preprocess.mean, ours.preprocess.resize_mode) == ((0.5,) * 3, "squash")

    images = torch.randn(2, 3, 224, 224)
    texts = torch.randint(2, VOCABULARY, (2, LENGTH))
    wanted = theirs(input_ids=texts, pixel_values=images)
    ours_image = torch.nn.functional.normalize(ours.encode_image(images), dim=1)
    ours_text = torch.nn.functional.normalize(ours.module.encode_text(texts), dim=1)
    torch.testing.assert_close(ours_image, wanted.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours_text, wanted.text_embeds, atol=1e-5, rtol=0)
    assert ours.bias == pytest.approx(float(theirs.logit_bias))
