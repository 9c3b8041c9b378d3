"""Each restated vision tower equals open_clip's own, and its tokens equal an independent derivation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_samples import CLASSES, RESNET, VIT, write_model

from calipso_export import ExportConfig, export
from calipso_export.models import LoadedModel, load_model
from calipso_export.towers import tower_class
from calipso_runtime.errors import ModelError

VITS: dict[str, dict[str, Any]] = {
    "class token": {},
    "average pool": {"pool_type": "avg"},
    "average pool, norm after": {"pool_type": "avg", "final_ln_after_pool": True},
    "class token, norm after": {"final_ln_after_pool": True},
    "no norm before": {"no_ln_pre": True},
    "layer scale": {"ls_init_value": 0.3},
    "sine positions": {"pos_embed_type": "sin_cos_2d"},
    "wide picture": {"image_size": [24, 40]},
    "patch dropout in training": {"patch_dropout": 0.5},
    "norm epsilon": {"norm_kwargs": {"eps": 1e-3}},
    "tanh activation": {"act_kwargs": {"approximate": "tanh"}},
}


def load(folder: Path, document: dict[str, Any], vision: dict[str, Any]) -> LoadedModel:
    path = write_model(folder / f"{folder.name}.json", document, vision=vision)
    return load_model(ExportConfig(model=str(path), classes=CLASSES, output=folder, random_init=3))


def images(model: LoadedModel, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(5))


def assert_equal_up_to_rounding(found: torch.Tensor, wanted: torch.Tensor, relative: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=relative * float(wanted.abs().max()))


def tokens_by_open_clip(model: LoadedModel, image: torch.Tensor) -> torch.Tensor:
    """open_clip hands its tokens out unprojected, and un-normed where the norm follows the pooling."""
    visual: Any = model.visual
    visual.output_tokens = True
    _, tokens = visual(image)
    return (visual.ln_post(tokens) if visual.final_ln_after_pool else tokens) @ visual.proj


def tokens_by_hand(model: LoadedModel, image: torch.Tensor) -> np.ndarray:
    """The attention pool in float64 numpy, with every position as a query, on the map that reaches open_clip's."""
    seen: list[torch.Tensor] = []
    pool: Any = model.visual.attnpool
    handle = pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.visual(image)
    handle.remove()
    maps = seen[0].double().numpy()
    x = maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1)
    x = np.concatenate([x.mean(1, keepdims=True), x], axis=1) + pool.positional_embedding.double().numpy()

    def linear(values: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
        return values @ layer.weight.double().numpy().T + layer.bias.double().numpy()

    query, key, value = (linear(x, layer) for layer in (pool.q_proj, pool.k_proj, pool.v_proj))
    heads = []
    for q, k, v in zip(*(np.split(part, pool.num_heads, axis=2) for part in (query, key, value)), strict=True):
        raised = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2]))
        heads.append(raised / raised.sum(axis=2, keepdims=True) @ v)
    return linear(np.concatenate(heads, axis=2), pool.c_proj)[:, 1:]


@pytest.mark.parametrize("vision", VITS.values(), ids=VITS)
@pytest.mark.parametrize("quick_gelu", [False, True], ids=["gelu", "quickgelu"])
def test_a_vit_and_its_tokens_are_open_clips(tmp_path: Path, vision: dict[str, Any], quick_gelu: bool) -> None:
    if quick_gelu and "act_kwargs" in vision:
        vision = {}
    model = load(tmp_path, {**VIT, "quick_gelu": quick_gelu}, vision)
    image = images(model)

    pooled, tokens = model.tower(model.visual, with_tokens=True)(image)

    assert_equal_up_to_rounding(pooled, model.module.encode_image(image))
    assert tokens is not None
    assert_equal_up_to_rounding(tokens, tokens_by_open_clip(model, image))


@pytest.mark.parametrize("vision", [{}, {"layers": [2, 1, 1, 2]}, {"image_size": 96}], ids=["small", "deep", "large"])
def test_a_resnet_and_its_tokens_are_open_clips(tmp_path: Path, vision: dict[str, Any]) -> None:
    model = load(tmp_path, RESNET, vision)
    image = images(model)

    pooled, tokens = model.tower(model.visual, with_tokens=True)(image)

    assert_equal_up_to_rounding(pooled, model.module.encode_image(image))
    assert tokens is not None
    assert_equal_up_to_rounding(tokens, torch.from_numpy(tokens_by_hand(model, image)).float())


def test_random_batch_norms_leave_no_branch_of_the_resnet_switched_off(resnet: LoadedModel) -> None:
    norms = [part for part in resnet.visual.modules() if isinstance(part, torch.nn.BatchNorm2d)]

    assert min(float(norm.weight.abs().min()) for norm in norms) > 0.1


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_reference_is_open_clips_feature_and_the_towers_tokens(name: str, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(name)
    image = images(model)

    pooled, tokens = model.tower.reference(model.visual, image)
    own_pooled, own_tokens = model.tower(model.visual, with_tokens=True)(image)

    assert_equal_up_to_rounding(pooled, model.visual(image))
    assert_equal_up_to_rounding(own_pooled, pooled)
    assert_equal_up_to_rounding(own_tokens, tokens)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_without_tokens_the_global_feature_is_the_same(name: str, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(name)
    image = images(model)

    pooled, tokens = model.tower(model.visual, with_tokens=False)(image)

    assert tokens is None
    assert_equal_up_to_rounding(pooled, model.visual(image))


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_tower_holds_open_clips_own_parameters(name: str, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(name)
    tower = model.tower(model.visual, with_tokens=True)

    own = {weight.data_ptr() for weight in (*tower.parameters(), *tower.buffers())}

    assert own == {weight.data_ptr() for weight in (*model.visual.parameters(), *model.visual.buffers())}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "custom blocks": ({"qk_norm": True}, "blocks .*CustomResidualAttentionBlock"),
    "no pooling": ({"pool_type": "none"}, "pooling 'none'"),
}


@pytest.mark.parametrize(("vision", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_vit_that_is_not_implemented_is_refused_with_the_reason(
    tmp_path: Path, vision: dict[str, Any], reason: str
) -> None:
    path = write_model(tmp_path / f"{tmp_path.name}.json", vision=vision)

    with pytest.raises(ModelError, match=reason):
        export(ExportConfig(model=str(path), classes=CLASSES, output=tmp_path / "out", random_init=0))


def test_any_other_vision_module_is_refused_with_the_families_that_there_are() -> None:
    with pytest.raises(
        ModelError, match=r"Linear cannot be exported: implemented families are vit, coca, resnet, .*timm"
    ):
        tower_class(torch.nn.Linear(2, 2))


def test_without_tokens_the_last_block_of_a_vit_asks_for_the_class_token_alone(vit: LoadedModel) -> None:
    tower = vit.tower(vit.visual, with_tokens=False)
    widths = []
    last = tower.visual.transformer.resblocks[-1]
    hook = last.mlp.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))

    pooled, tokens = tower(images(vit))
    hook.remove()

    assert (widths, tokens) == ([1], None)
    assert_equal_up_to_rounding(pooled, vit.visual(images(vit)))


def test_with_tokens_the_last_block_of_a_vit_works_on_all(vit: LoadedModel) -> None:
    tower = vit.tower(vit.visual, with_tokens=True)
    widths = []
    hook = tower.visual.transformer.resblocks[-1].mlp.register_forward_pre_hook(
        lambda _, inputs: widths.append(inputs[0].shape[1])
    )

    tower(images(vit))
    hook.remove()

    assert widths == [tower.rows] == [17]
