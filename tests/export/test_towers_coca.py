"""CoCa's towers: one query of the attention pooler is the feature, and patches have no place in the joint space."""

from pathlib import Path
from typing import Any

import pytest
import torch
from export_samples import CLASSES, TEXT, VIT_VISION, MakeConfig, write_model
from test_towers import assert_equal_up_to_rounding, images
from test_towers_timm import assert_answers
from torch.nn import functional

from calipso_export import ExportConfig, export
from calipso_export.classifier import ClassifierModule
from calipso_export.forms import ORT_FORMS, apply_forms
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.models import LoadedModel, load_model
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import trace
from calipso_export.towers import tower_of
from calipso_runtime.errors import ModelError

_POOLED = {**VIT_VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
COCA = {
    "embed_dim": 32,
    "vision_cfg": _POOLED,
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}
POOLERS: dict[str, dict[str, Any]] = {
    "first query": {},
    "as wide as the joint space": {"width": 32},
    "mean of the queries": {"pool_type": "avg"},
    "a pooler of its own": {"attentional_pool": "parallel", "width": 32},
    "one pooler behind the other": {"attentional_pool": "cascade", "width": 32},
    "no pooler, as coca_base": {"attentional_pool": False},
}


def load(folder: Path, vision: dict[str, Any], **changes: Any) -> LoadedModel:
    path = write_model(folder / f"{folder.name}.json", COCA, vision=vision)
    return load_model(ExportConfig(model=str(path), classes=CLASSES, output=folder / "out", random_init=3, **changes))


@pytest.mark.parametrize("vision", POOLERS.values(), ids=POOLERS)
def test_a_coca_tower_is_open_clips(tmp_path: Path, vision: dict[str, Any]) -> None:
    model = load(tmp_path, vision)
    image = images(model)
    # With poolers of its own, open_clip keeps the axis of the one query.
    wanted = model.module.encode_image(image, normalize=False).flatten(1)

    pooled, _ = tower_of(model.visual)(image)

    assert_equal_up_to_rounding(pooled, wanted)
    assert_equal_up_to_rounding(model.encode_image(image), wanted)
    assert_equal_up_to_rounding(model.tower.reference(model.visual, image)[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("vision", POOLERS.values(), ids=POOLERS)
def test_the_graph_of_a_coca_tower_answers_like_open_clip_in_every_batch(
    tmp_path: Path, vision: dict[str, Any]
) -> None:
    model = load(tmp_path, vision)
    image, outputs = images(model, 5), ("logits", "embedding")
    embedding = functional.normalize(model.module.encode_image(image, normalize=False).flatten(1), dim=-1)
    tower = model.tower(model.visual, with_tokens=False)
    module = ClassifierModule(tower, ZeroShotHead(torch.eye(32), scale=1.0), outputs=outputs).eval()
    config = ExportConfig(model="unused", classes=CLASSES, output=tmp_path, random_init=0, outputs=outputs)

    graph = optimise(trace(module, model, config)).portable

    assert_answers(graph, image, {"embedding": embedding, "logits": embedding}, outputs)
    apply_forms(graph.graph, ORT_FORMS)
    assert_answers(graph, image, {"embedding": embedding, "logits": embedding}, outputs)


def test_only_the_first_query_is_in_the_graph(tmp_path: Path) -> None:
    model = load(tmp_path, {"attn_pooler_queries": 256})
    asked = []
    pooler: Any = model.visual.attn_pool
    hook = pooler.attn.out_proj.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].shape[1]))

    tower_of(model.visual)(images(model))
    hook.remove()

    assert asked == [1]


def test_the_queries_of_a_pooler_are_no_tokens(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--calip cannot be had of .*learned queries, not patches"):
        load(tmp_path, {}, calip=True)


def test_without_a_pooler_cocas_patches_are_tokens(tmp_path: Path) -> None:
    model = load(tmp_path, POOLERS["no pooler, as coca_base"], calip=True)

    assert model.tokens(images(model)).shape == (3, 16, 32)


@pytest.mark.slow
def test_calip_is_left_out_with_the_reason_where_it_is_not_defined(make_config: MakeConfig, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny-coca.json", COCA)

    manifest, parity = export(make_config(model=str(path), b2=None, b3=None, outputs=("logits", "embedding")))

    assert manifest.head["calip"]["reason"].startswith("not defined for this model: it pools with attention")
    assert (manifest.model["family"], parity.status) == ("coca", "passed")
