"""Where a model's preprocessing comes from: settings given, a tag, its published weights, or open_clip's default."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from export_samples import CLASSES, TEXT, write_model
from PIL import Image
from safetensors.torch import save_file
from tower_samples import POOLED, TIMM, load_timm

from calipso_export import ExportConfig
from calipso_export.clip import open_clip
from calipso_export.models import LoadedModel, load_model
from calipso_export.preprocessing import settings_of
from calipso_runtime.errors import CalipsoWarning, ModelError
from calipso_runtime.preprocess import normalise, resize_and_crop


def config(model: str, **changes: Any) -> ExportConfig:
    weights = {} if changes.keys() & {"pretrained", "random_init"} else {"checkpoint": Path("own.safetensors")}
    return ExportConfig(model=model, classes=CLASSES, output=Path("unused"), **weights, **changes)


WAYS = {
    "ViT-B-32": ((0.48145466, 0.4578275, 0.40821073), "bicubic", "shortest"),
    "ViT-B-16-SigLIP2-384": ((0.5, 0.5, 0.5), "bicubic", "squash"),
    "PE-Core-L-14-336": ((0.5, 0.5, 0.5), "bilinear", "squash"),
    "ViT-H-14-CLIPA": ((0.485, 0.456, 0.406), "bilinear", "squash"),
    "MobileCLIP2-S0": ((0.0, 0.0, 0.0), "bilinear", "shortest"),
}


@pytest.mark.parametrize("model", WAYS)
def test_a_checkpoint_is_prepared_as_all_published_weights_of_its_model(model: str) -> None:
    settings, source = settings_of(model, config(model))

    assert (settings["mean"], settings["interpolation"], settings["resize_mode"]) == WAYS[model]
    assert source == "all published weights of the model"


def test_what_is_given_wins_over_published_weights() -> None:
    settings, source = settings_of("ViT-B-16-SigLIP", config("ViT-B-16-SigLIP", preprocess={"resize_mode": "longest"}))

    assert (settings["resize_mode"], settings["mean"]) == ("longest", (0.5, 0.5, 0.5))
    assert source == "all published weights of the model; given: resize_mode"


@pytest.mark.parametrize(
    ("model", "ways"),
    [
        ("ViT-H-14", r"resize_mode: shortest \(.*laion2b_s32b_b79k.*\), squash \(dfn5b\)"),
        ("ViT-L-14", r"mean: \(0\.48.*\) \(openai, .*\), \(0\.5, 0\.5, 0\.5\) \(laion2b_s32b_b82k\); std: "),
    ],
)
def test_where_published_weights_disagree_a_checkpoint_has_to_say_which(model: str, ways: str) -> None:
    with pytest.raises(ModelError, match=rf"{model} .* different ways: {ways}.*under \[preprocess\]"):
        settings_of(model, config(model))


def test_a_checkpoint_that_says_what_is_in_doubt_takes_the_rest_from_the_published_weights() -> None:
    settings, source = settings_of("ViT-H-14", config("ViT-H-14", preprocess={"resize_mode": "squash"}))

    assert settings["resize_mode"] == "squash"
    assert settings["mean"] == WAYS["ViT-B-32"][0]
    assert source == "all published weights of the model; given: resize_mode"


def test_random_weights_need_no_decision_where_published_weights_disagree() -> None:
    settings, source = settings_of("ViT-H-14", config("ViT-H-14", random_init=0))

    assert "resize_mode" not in settings
    assert source == "open_clip's default"


def test_a_tag_speaks_for_itself() -> None:
    assert settings_of("ViT-H-14", config("ViT-H-14", pretrained="dfn5b")) == ({}, "the tag dfn5b")


def test_no_published_weights_leave_open_clips_default() -> None:
    assert settings_of("ViT-S-32", config("ViT-S-32")) == ({}, "open_clip's default")


@pytest.mark.parametrize("name", open_clip.list_models())
def test_only_two_families_of_models_make_a_checkpoint_choose(name: str) -> None:
    try:
        settings_of(name, config(name))
    except ModelError:
        assert name in ("ViT-L-14", "ViT-H-14", "ViT-H-14-quickgelu")


def checkpoint_of(folder: Path, vision: dict[str, Any]) -> Path:
    model = load_timm(folder, vision)
    path = folder / "own.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}, path)
    return path


def test_a_checkpoint_of_a_trunk_that_timm_prepares_otherwise_is_warned_of(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path, POOLED["SigLIP"])

    with pytest.warns(CalipsoWarning, match=r"own\.safetensors were prepared.*timm's for this trunk: mean \(0\.5,"):
        load_timm(tmp_path, POOLED["SigLIP"], random_init=None, checkpoint=path)


def test_there_is_no_warning_where_the_preprocessing_is_given(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path, POOLED["SigLIP"])
    given = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_timm(tmp_path, POOLED["SigLIP"], random_init=None, checkpoint=path, preprocess=given)

    assert (model.preprocess.mean, model.preprocess.resize_mode) == ((0.5, 0.5, 0.5), "squash")
    assert model.preprocess_source == "open_clip's default; given: mean, resize_mode, std"


def test_there_is_no_warning_where_timm_prepares_the_trunks_pictures_so_too(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path, TIMM["EVA02"])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_timm(tmp_path, TIMM["EVA02"], random_init=None, checkpoint=path)


SQUASHED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}
SIZES: dict[str, tuple[int | list[int], dict[str, Any]]] = {
    "square": (224, {}),
    "squashed to a square": (384, SQUASHED),
    "wide": ([24, 40], {}),
    "squashed to a wide one": ([24, 40], SQUASHED),
    "tall, the longest side": ([40, 24], {"resize_mode": "longest", "interpolation": "bilinear"}),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_runtimes_pixels_are_open_clips(tmp_path: Path, name: str) -> None:
    size, given = SIZES[name]
    model = vit_of_size(tmp_path, size, given)
    picture = Image.effect_mandelbrot((301, 197), (-2, -1.2, 0.7, 1.2), 60).convert("RGB")

    wanted = model.transform(picture)
    found = normalise(resize_and_crop(picture, model.preprocess), model.preprocess)

    assert tuple(wanted.shape[1:]) == model.preprocess.size
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-6)


def vit_of_size(folder: Path, size: int | list[int], given: dict[str, Any]) -> LoadedModel:
    vision = {"image_size": size, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    path = write_model(folder / f"{folder.name}.json", {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})
    return load_model(config(str(path), random_init=0, preprocess=given))
