"""Towers that open_clip takes from timm: equal to `encode_image`, also as a graph, over the model's own parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from test_towers import assert_equal_up_to_rounding, images
from torch.nn import functional
from tower_samples import OTHER, POOLED, TIMM, load_timm

from calipso_export import ExportConfig
from calipso_export.choices import OUTPUTS
from calipso_export.classifier import ClassifierModule
from calipso_export.forms import ORT_FORMS, apply_forms
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.models import LoadedModel
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import trace
from calipso_export.tidy import tidy
from calipso_export.towers import tower_of
from calipso_runtime.errors import ModelError

ALL: Mapping[str, dict[str, Any]] = {**TIMM, **POOLED, **OTHER}
# Their branches become other convolutions.
FOLDED = ("MobileCLIP-S", "MobileCLIP2-S3")
CLASSES = ("ant", "bee", "crab")


def token_by_open_clip(model: LoadedModel, image: torch.Tensor, position: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What open_clip's own forward gives for a picture that looks like one position everywhere."""
    trunk: Any = model.visual.trunk
    features = trunk.forward_features(image)
    if features.ndim == 3:
        everywhere = features[:, trunk.num_prefix_tokens + position, None].expand_as(features)
    elif model.tower.family == "swin":
        everywhere = features.flatten(1, 2)[:, position, None, None].expand_as(features)
    else:
        everywhere = features.flatten(2)[:, :, position, None, None].expand_as(features)
    with monkeypatch.context() as patch:
        patch.setattr(trunk, "forward_features", lambda *_, **__: everywhere)
        return model.module.encode_image(image)


@pytest.mark.parametrize("vision", ALL.values(), ids=ALL)
def test_a_timm_tower_and_its_reference_are_open_clips(tmp_path: Path, vision: dict[str, Any]) -> None:
    model = load_timm(tmp_path, vision)
    image = images(model)
    wanted = model.module.encode_image(image)

    pooled, _ = tower_of(model.visual)(image)

    torch.testing.assert_close(model.tower.reference(model.visual, image)[0], wanted, rtol=0, atol=0)
    assert_equal_up_to_rounding(pooled, wanted)


@pytest.mark.parametrize("vision", TIMM.values(), ids=TIMM)
def test_without_tokens_the_feature_stays_open_clips(tmp_path: Path, vision: dict[str, Any]) -> None:
    model = load_timm(tmp_path, vision)
    image = images(model)

    pooled, tokens = model.tower(model.visual, with_tokens=False)(image)

    assert tokens is None
    assert_equal_up_to_rounding(pooled, model.module.encode_image(image))


@pytest.mark.parametrize("name", ["MobileCLIP2-L", "MobileCLIP-B", "norms in the attention", "EVA01", "EVA02"])
def test_without_tokens_the_last_block_gives_the_class_token_alone(tmp_path: Path, name: str) -> None:
    model = load_timm(tmp_path, TIMM[name])

    lengths = {}
    for with_tokens in (True, False):
        tower: Any = model.tower(model.visual, with_tokens=with_tokens)
        lengths[with_tokens] = tower.visual.trunk.forward_features(images(model)).shape[1]

    assert lengths[True] == model.tower(model.visual, with_tokens=True).rows
    assert lengths[False] == 1


@pytest.mark.parametrize("vision", TIMM.values(), ids=TIMM)
def test_every_token_is_the_feature_of_a_picture_that_looks_like_it_everywhere(
    tmp_path: Path, vision: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_timm(tmp_path, vision)
    image = images(model)

    pooled, tokens = model.tower(model.visual, with_tokens=True)(image)

    assert_equal_up_to_rounding(pooled, model.module.encode_image(image))
    assert tokens is not None
    for position in range(tokens.shape[1]):
        wanted = token_by_open_clip(model, image, position, monkeypatch)
        assert_equal_up_to_rounding(tokens[:, position], wanted)
    assert_equal_up_to_rounding(tokens, model.tokens(image))


@pytest.mark.slow
@pytest.mark.parametrize("vision", ALL.values(), ids=ALL)
def test_the_graph_of_a_timm_tower_answers_like_open_clip_in_every_batch(
    tmp_path: Path, vision: dict[str, Any]
) -> None:
    model = load_timm(tmp_path, vision)
    image = images(model, 5)
    outputs = tuple(name for name in ("logits", "embedding", "tokens") if name != "tokens" or not model.why_no_tokens)
    wanted = {"embedding": functional.normalize(model.module.encode_image(image), dim=-1)}
    if "tokens" in outputs:
        wanted["tokens"] = functional.normalize(model.tokens(image), dim=-1)
    wanted["logits"] = wanted["embedding"] @ torch.eye(wanted["embedding"].shape[1])
    head = ZeroShotHead(torch.eye(wanted["embedding"].shape[1]), scale=1.0)
    config = ExportConfig(model="unused", classes=CLASSES, output=Path("unused"), random_init=0, outputs=tuple(outputs))

    graph = optimise(trace(ClassifierModule(tower_of(model.visual), head, outputs=outputs).eval(), model, config))

    assert_answers(graph.portable, image, wanted, outputs)
    apply_forms(graph.portable.graph, ORT_FORMS)
    tidy(graph.portable)
    assert_answers(graph.portable, image, wanted, outputs)


def assert_answers(graph: ir.Model, image: torch.Tensor, wanted: Mapping[str, Any], outputs: tuple[str, ...]) -> None:
    assert set(outputs) <= set(OUTPUTS)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        for name, found in zip(outputs, session.run(list(outputs), {"image": image[:batch].numpy()}), strict=True):
            expected = wanted[name][:batch].numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("name", [name for name in ALL if name not in FOLDED])
def test_a_timm_tower_holds_the_models_own_parameters(tmp_path: Path, name: str) -> None:
    model = load_timm(tmp_path, ALL[name])
    tower = tower_of(model.visual)

    own = {weight.data_ptr() for weight in (*tower.parameters(), *tower.buffers())}

    assert own == {weight.data_ptr() for weight in (*model.visual.parameters(), *model.visual.buffers())}


def test_a_fastvits_branches_norms_and_scales_become_convolutions_and_the_rest_is_the_models_own(
    tmp_path: Path,
) -> None:
    model = load_timm(tmp_path, TIMM["MobileCLIP-S"])
    before = {name for name, _ in model.visual.named_parameters()}
    given = {weight.data_ptr() for weight in model.visual.parameters()}

    tower = tower_of(model.visual)

    copied = {name for name, weight in tower.visual.named_parameters() if weight.data_ptr() not in given}
    assert copied
    folded = (".reparam_conv.", ".qkv.", ".proj.", ".fc2.")
    assert all(any(part in name for part in folded) for name in copied)
    assert not any("gamma" in name or ".norm." in name for name, _ in tower.visual.named_parameters())
    assert {name for name, _ in model.visual.named_parameters()} == before


@pytest.mark.parametrize("vision", ALL.values(), ids=ALL)
def test_a_tower_leaves_the_model_that_it_is_made_of_as_it_was(tmp_path: Path, vision: dict[str, Any]) -> None:
    model = load_timm(tmp_path, vision)
    model.visual.requires_grad_(True)
    image = images(model)
    before, answer = attributes(model.visual), model.module.encode_image(image)

    tower_of(model.visual)(image)

    assert attributes(model.visual) == before
    assert all(parameter.requires_grad for parameter in model.visual.parameters())
    torch.testing.assert_close(model.module.encode_image(image), answer, rtol=0, atol=0)


def attributes(module: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Of every part: what it holds by name, and whether its attention is fused."""
    return {
        name: (*sorted(vars(part)), *part._parameters, *part._buffers, str(getattr(part, "fused_attn", None)))
        for name, part in module.named_modules()
    }


@pytest.mark.parametrize("vision", [*POOLED.values(), *OTHER.values()], ids=[*POOLED, *OTHER])
def test_tokens_that_have_no_place_in_the_joint_space_are_refused_with_the_reason(
    tmp_path: Path, vision: dict[str, Any]
) -> None:
    model = load_timm(tmp_path, vision)
    reason = str(model.why_no_tokens)

    with pytest.raises(ModelError, match=f"not defined: {reason}"):
        model.tower(model.visual, with_tokens=True)
    with pytest.raises(ModelError, match=f"has no spatial tokens: {reason}"):
        model.tokens(images(model))


ASKED: dict[str, dict[str, Any]] = {
    "--calip": {"calip": True},
    "--b2 and --b3": {"b2": 1.0, "b3": 0.1},
    "--outputs tokens": {"outputs": ("logits", "tokens")},
}


@pytest.mark.parametrize("option", ASKED)
def test_calip_is_refused_by_name_where_it_is_not_defined(tmp_path: Path, option: str) -> None:
    with pytest.raises(ModelError, match=rf"^{option} cannot be had of .* it pools with attention.* Leave it out"):
        load_timm(tmp_path, POOLED["SigLIP"], **ASKED[option])


@pytest.mark.parametrize("vision", ALL.values(), ids=ALL)
def test_random_layer_scales_leave_no_branch_switched_off(tmp_path: Path, vision: dict[str, Any]) -> None:
    model = load_timm(tmp_path, vision)

    scales = [weight for name, weight in model.visual.named_parameters() if "gamma" in name]

    assert all(float(scale.abs().min()) >= 0.1 for scale in scales)
    small = [name for name, weight in model.visual.named_parameters() if 0 < float(weight.abs().max()) < 1e-5]
    assert all("_token" in name for name in small)


@pytest.mark.parametrize("name", ["convnext", "vit_medium_gap", "MobileCLIP-S", "vit_relpos_medium_cls"])
def test_there_are_layer_scales_to_draw(tmp_path: Path, name: str) -> None:
    model = load_timm(tmp_path, TIMM[name])

    assert any("gamma" in name for name, _ in model.visual.named_parameters())


def test_rows_are_the_tokens_of_a_picture_and_none_of_a_map(tmp_path: Path) -> None:
    clip = load_timm(tmp_path, TIMM["MobileCLIP2-L"])
    (tmp_path / "map").mkdir()
    convnext = load_timm(tmp_path / "map", TIMM["convnext"])

    assert (tower_of(clip.visual).rows, tower_of(convnext.visual).rows) == (17, None)
