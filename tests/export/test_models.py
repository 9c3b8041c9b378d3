"""Models by name, configuration and tag: what would silently be another model is refused."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from export_samples import CLASSES, TEXT, VIT, noise, write_model
from safetensors.torch import save_file

from calipso_export import ExportConfig
from calipso_export.checkpoints import activation_message
from calipso_export.model_names import architecture_of
from calipso_export.models import LoadedModel, load_model
from calipso_runtime.errors import ModelError
from calipso_runtime.manifest import Preprocess


def load(model: object, **changes: Any) -> LoadedModel:
    weights = {} if changes.keys() & {"pretrained", "checkpoint"} else {"random_init": 0}
    return load_model(ExportConfig(model=str(model), classes=CLASSES, output=Path("unused"), **weights, **changes))


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is built, or downloaded, fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a model was built, or downloaded, although it had to be refused before")

    monkeypatch.setattr(open_clip, "create_model", refuse)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("ViT-B32", "ViT-B-32"), ("RN5O", "RN50"), ("vit-b-16", "ViT-B-16"), ("ViT-B/322", "ViT-B-32")],
)
def test_an_unknown_model_is_refused_with_a_suggestion(name: str, suggestion: str) -> None:
    with pytest.raises(ModelError, match=rf"open_clip has no model called '{name}'\. Did you mean .*{suggestion}"):
        load(name)


@pytest.mark.parametrize("name", ["hf-hub:timm/ViT-B-16-SigLIP", "local-dir:/tmp", "", "no such thing at all"])
def test_what_is_no_model_name_is_refused(name: str, no_download: None) -> None:
    with pytest.raises(ModelError, match="open_clip has no model called"):
        load(name)


def test_a_missing_configuration_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lost\.json does not exist"):
        load(tmp_path / "lost.json")


CONFIGURATIONS = {
    "not JSON": "{",
    "not UTF-8": b"\xff\xfe{}",
    "not an object": "[1, 2]",
    "nothing in it": "{}",
    "no text tower": json.dumps({"embed_dim": 32, "vision_cfg": {}}),
    "vision_cfg is a list": json.dumps({**VIT, "vision_cfg": []}),
    "unknown setting": json.dumps({**VIT, "vision_cfg": {**VIT["vision_cfg"], "colour": 1}}),
    "unknown top setting": json.dumps({**VIT, "colour": 1}),
    "width is a text": json.dumps({**VIT, "vision_cfg": {**VIT["vision_cfg"], "width": "wide"}}),
    "heads do not divide": json.dumps({**VIT, "text_cfg": {**TEXT, "heads": 5}}),
}


@pytest.mark.parametrize("content", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_configuration_that_is_none_is_refused_by_its_path(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / f"{tmp_path.name}.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(ModelError, match=path.name):
        load(path)


def test_a_broken_configuration_does_not_stand_in_the_way_of_the_next(tmp_path: Path, tiny_vit: Path) -> None:
    (tmp_path / "broken-before.json").write_text("{")
    with pytest.raises(ModelError):
        load(tmp_path / "broken-before.json")

    assert load(tiny_vit).name == "tiny-vit"


def test_an_unusable_configuration_is_not_replaced_by_open_clips_of_the_same_name(
    tmp_path: Path, no_download: None
) -> None:
    (tmp_path / "RN50.json").write_text('{"embed_dim": 32}')

    with pytest.raises(ModelError, match=r"RN50\.json is not an open_clip model configuration"):
        load(tmp_path / "RN50.json")


def test_an_unknown_tag_lists_the_known_ones(no_download: None) -> None:
    with pytest.raises(ModelError, match=r"no weights 'nonsense' for RN50\. Known tags: .*yfcc15m"):
        load("RN50", pretrained="nonsense")


def test_a_model_without_published_weights_says_so(tiny_vit: Path, no_download: None) -> None:
    with pytest.raises(ModelError, match=r"no weights 'openai' for tiny-vit\. Known tags: none"):
        load(tiny_vit, pretrained="openai")


@pytest.mark.parametrize(
    ("model", "tag", "other"),
    [("ViT-B-32", "openai", "ViT-B-32-quickgelu"), ("RN50", "cc12m", "RN50-quickgelu")],
)
def test_weights_of_another_activation_are_refused_before_any_download(
    model: str, tag: str, other: str, no_download: None
) -> None:
    with pytest.raises(ModelError, match=rf"{model} uses .* the tag '{tag}' says .* use --model {other}$"):
        load(model, pretrained=tag)


def test_a_tag_that_says_nothing_of_its_activation_has_its_models(
    monkeypatch: pytest.MonkeyPatch, no_download: None
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    # Its model uses QuickGELU: that is no contradiction, and loading gets as far as the text tower, which is a hub's.
    with pytest.raises(ModelError, match="the text tower of roberta-ViT-B-32"):
        load("roberta-ViT-B-32", pretrained="laion2b_s12b_b32k")


@pytest.mark.parametrize("model", sorted({name for name, _ in open_clip.list_pretrained()}))
def test_a_refused_activation_names_a_model_that_there_is(model: str) -> None:
    message = activation_message(
        model, "the tag", model=bool(open_clip.get_model_config(model).get("quick_gelu", False))
    )

    suggested = message.rpartition("use --model ")[2]
    assert suggested == message or open_clip.get_model_config(suggested) is not None


def test_without_a_network_a_tag_points_to_the_checkpoint_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))

    with pytest.raises(ModelError, match=r"could not be downloaded: .*give the file with --checkpoint FILE"):
        load("RN50-quickgelu", pretrained="cc12m")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_vit: Path, vit: LoadedModel) -> None:
    config = {"model": str(tiny_vit), "classes": CLASSES, "output": Path("unused")}

    again, other = (load_model(ExportConfig(**config, random_init=seed)) for seed in (0, 1))

    assert again.weights == vit.weights
    assert other.weights["sha256"] != vit.weights["sha256"]


def test_a_model_says_what_was_loaded(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny-wide.json", {**VIT, "quick_gelu": True}, vision={"image_size": [24, 40]})

    model = load(path)

    assert (model.name, model.quick_gelu, model.tower.family) == ("tiny-wide", True, "vit")
    assert model.scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert model.bias == 0.0
    assert model.preprocess.size == (24, 40)
    assert not model.module.training
    assert not any(weight.requires_grad for weight in model.module.parameters())


def test_a_logit_bias_and_scale_are_read_off_the_model(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny-bias.json", {**VIT, "init_logit_bias": -10, "init_logit_scale": 2.0})

    model = load(path)

    assert (model.bias, model.scale) == (-10.0, pytest.approx(7.389056, rel=1e-6))


def test_preprocessing_can_be_overridden_and_is_recorded(tiny_vit: Path) -> None:
    override = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1.0], "resize_mode": "squash", "interpolation": "bilinear"}

    model = load(tiny_vit, preprocess=override)

    assert model.preprocess == Preprocess(
        size=(32, 32), mean=(0.5,) * 3, std=(0.25, 0.5, 1.0), resize_mode="squash", interpolation="bilinear"
    )
    white = model.transform(noise(0).point(lambda _: 255))
    torch.testing.assert_close(white[:, 0, 0], torch.tensor([2.0, 1.0, 0.5]))


@pytest.mark.parametrize("text", [{"hf_tokenizer_name": "no/such"}, {"hf_model_name": "no/such"}])
def test_without_transformers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_download: None, text: dict[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    path = write_model(tmp_path / f"{tmp_path.name}.json", {**VIT, "text_cfg": {**TEXT, **text}})

    with pytest.raises(ModelError, match=r"needs transformers, .*: pip install 'calipso\[hf\]'"):
        load(path)


def snapshot(folder: Path, vit: LoadedModel, **preprocess: object) -> Path:
    """A folder as a hub has it: the configuration and the weights."""
    folder.mkdir()
    document = {"model_cfg": VIT, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(vit.module.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("given", ["", "open_clip_config.json"], ids=["the folder", "the file"])
def test_a_snapshot_is_model_preprocessing_and_weights_in_one(tmp_path: Path, vit: LoadedModel, given: str) -> None:
    told = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bicubic"}
    folder = snapshot(tmp_path / f"snapshot{len(given)}", vit, **told)

    model = load_model(ExportConfig(model=str(folder / given), classes=CLASSES, output=Path("unused")))

    assert (model.name, model.preprocess.mean, model.preprocess.resize_mode) == (folder.name, (0.5,) * 3, "squash")
    assert model.weights["sha256"] == vit.weights["sha256"]


def test_a_checkpoint_that_is_given_is_taken_instead_of_a_snapshots_own(tmp_path: Path, vit: LoadedModel) -> None:
    folder = snapshot(tmp_path / "snapshot-other", vit)
    other = {**vit.module.state_dict(), "logit_scale": torch.tensor(3.0)}
    save_file(other, tmp_path / "other.safetensors")

    model = load_model(
        ExportConfig(
            model=str(folder), classes=CLASSES, output=Path("unused"), checkpoint=tmp_path / "other.safetensors"
        )
    )

    assert model.scale == pytest.approx(math.exp(3.0))


def test_a_folder_that_does_not_say_what_it_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no open_clip_config\.json"):
        load(tmp_path)


def test_a_folder_that_is_called_like_a_model_does_not_stand_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "RN50").mkdir()
    monkeypatch.chdir(tmp_path)

    assert architecture_of("RN50") is None
    assert ExportConfig(model="RN50", classes=CLASSES, output=Path("unused"), random_init=0).checkpoint is None


@pytest.fixture
def no_weights(tmp_path: Path) -> Path:
    """A checkpoint that is refused as another architecture, once nothing else is wrong."""
    save_file({"logit_scale": torch.tensor(4.6)}, tmp_path / "none.safetensors")
    return tmp_path / "none.safetensors"


@pytest.mark.parametrize("model", ["ViT-B-32", "ViT-L-14"])
def test_a_checkpoint_of_a_model_that_is_published_with_two_activations_has_to_say_which(
    model: str, no_weights: Path, no_download: None
) -> None:
    with pytest.raises(ModelError, match=rf"published with two activations: .*--activation gelu, or --model {model}-q"):
        load(model, checkpoint=no_weights)


@pytest.mark.parametrize(("model", "activation"), [("ViT-B-32", "quick-gelu"), ("ViT-B-32-quickgelu", "gelu")])
def test_an_activation_that_is_not_the_models_is_refused(
    model: str, activation: str, no_weights: Path, no_download: None
) -> None:
    with pytest.raises(ModelError, match="the answers would be quietly wrong"):
        load(model, checkpoint=no_weights, activation=activation)


@pytest.mark.parametrize(
    ("model", "activation"), [("ViT-B-32", "gelu"), ("ViT-B-32-quickgelu", None), ("ViT-B-16-SigLIP", None)]
)
def test_an_activation_that_is_said_or_in_no_doubt_is_not_asked_for(
    model: str, activation: str | None, no_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        message = "it would be built now"
        raise ModelError(message)

    monkeypatch.setattr("calipso_export.models.open_clip.create_model", built)

    with pytest.raises(ModelError, match="it would be built now"):
        load_model(
            ExportConfig(
                model=model, classes=CLASSES, output=Path("unused"), checkpoint=no_weights, activation=activation
            ),
            encodes_text=False,
        )
