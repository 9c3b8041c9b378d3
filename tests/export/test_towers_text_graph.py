"""The text tower as a graph equals open_clip's own, for every way in which open_clip builds one without a hub."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_samples import CLASSES, VIT, write_model
from torch import nn

from calipso_export import ExportConfig
from calipso_export.choices import OPSETS
from calipso_export.models import LoadedModel, load_model
from calipso_export.probes import probe
from calipso_export.split import part
from calipso_export.steps.trace import traced_open
from calipso_export.templates import Prompts
from calipso_export.towers.text import TextTower
from calipso_runtime.errors import ModelError
from calipso_runtime.manifest import TEXT_EMBEDDING

TEXTS = ["", "a cat", "a photo of a red tulip.", "word " * 100, "<end_of_text> in the middle", "café 🍮"]
MULTIMODAL = {"width": 32, "heads": 2, "layers": 1, "context_length": 16, "vocab_size": 49408}

# Changes to the text tower; of the whole document those in capitals.
TOWERS: dict[str, dict[str, Any]] = {
    "causal, read at the highest id": {},
    "three layers": {"layers": 3},
    "read at the end-of-text id": {"pool_type": "eos", "eos_id": 49407},
    "first token": {"pool_type": "first"},
    "last token": {"pool_type": "last"},
    "SigLIP's": {"pool_type": "last", "no_causal_mask": True, "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
    "bidirectional": {"no_causal_mask": True},
    "projection with a bias": {"proj_bias": True},
    "no projection": {"proj_type": "none"},
    "layer scale": {"ls_init_value": 0.3},
    "tanh activation": {"act_kwargs": {"approximate": "tanh"}},
    "queries and keys normalised": {"qk_norm": True},
    "heads scaled": {"scale_heads": True},
    "inner norms": {"scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
}


def load(folder: Path, *, whole: dict[str, Any] | None = None, **text: Any) -> LoadedModel:
    document = {**VIT, **(whole or {}), "text_cfg": {**VIT["text_cfg"], **text}}
    path = write_model(folder / f"{folder.name}.json", document)
    return load_model(ExportConfig(model=str(path), classes=CLASSES, output=folder, random_init=1))


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
def assert_like_open_clip(model: LoadedModel, ids: torch.Tensor | None = None) -> None:
    ids = model.tokenizer(TEXTS) if ids is None else ids

    assert_close(TextTower(model.module).eval()(ids), TextTower.reference(model.module, ids))


@pytest.mark.parametrize("text", TOWERS.values(), ids=TOWERS)
@pytest.mark.parametrize("custom", [False, True], ids=["in the model", "apart"])
def test_a_text_tower_is_open_clips(tmp_path: Path, text: dict[str, Any], custom: bool) -> None:
    assert_like_open_clip(load(tmp_path, whole={"custom_text": custom}, **text))


def test_quick_gelu_is_open_clips(tmp_path: Path) -> None:
    assert_like_open_clip(load(tmp_path, whole={"quick_gelu": True}))


@pytest.mark.parametrize("correct", [False, True], ids=["as released", "corrected"])
def test_cocas_class_token_and_its_mask_are_open_clips(tmp_path: Path, correct: bool) -> None:
    whole = {"multimodal_cfg": MULTIMODAL, "custom_text": True}
    model = load(tmp_path, whole=whole, embed_cls=True, output_tokens=True)
    text: Any = model.module.text
    text.correct_cls_mask = correct

    assert_like_open_clip(model)


def test_pads_are_masked_where_open_clip_masks_them(tmp_path: Path) -> None:
    model = load(tmp_path, whole={"custom_text": True}, no_causal_mask=True, pool_type="first")
    ids = model.tokenizer(TEXTS)
    plain = TextTower.reference(model.module, ids)
    text: Any = model.module.text
    text.use_pad_mask = True

    assert_like_open_clip(model, ids)
    # The mask matters: short texts are not what they were.
    assert float((TextTower.reference(model.module, ids) - plain).abs().max()) > 1e-3


class MeanOfTokens(nn.Module):
    """A text encoder that is none of open_clip's own, as those of a hub are."""

    def __init__(self) -> None:
        super().__init__()
        self.context_length = 16
        self.embedding = nn.Embedding(49408, 32)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.embedding(ids)
        return tokens.mean(dim=1), tokens


@torch.no_grad()
def test_another_text_encoder_is_taken_as_its_own_module(tmp_path: Path) -> None:
    model = load(tmp_path, whole={"custom_text": True})
    module: Any = copy.deepcopy(model.module)
    module.text = MeanOfTokens()
    ids = model.tokenizer(TEXTS)

    assert_close(TextTower(module)(ids), module.text.embedding(ids).mean(dim=1))


def test_a_pooling_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    model = load(tmp_path)
    module: Any = copy.deepcopy(model.module)
    module.text_pool_type = "none"

    with pytest.raises(ModelError, match="'none'"):
        TextTower(module)


def graph_of(model: LoadedModel, opset: int, folder: Path) -> tuple[onnxruntime.InferenceSession, torch.Tensor]:
    config = ExportConfig(model="unused", output=folder, random_init=0, head_mode="open", opset=opset)
    probes = probe(model, (), Prompts(source="test", templates=("{}",)))
    graph = part(traced_open(model, probes, config).graph, (TEXT_EMBEDDING,))
    graph.graph.initializers.pop("token_ids").const_value = None
    ir.save(graph, folder / "text.onnx")
    session = onnxruntime.InferenceSession(str(folder / "text.onnx"), providers=["CPUExecutionProvider"])
    return session, probes.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    "text",
    [{}, TOWERS["SigLIP's"], TOWERS["read at the end-of-text id"], {"embed_cls": True, "output_tokens": True}],
    ids=["CLIP's", "SigLIP's", "end-of-text id", "CoCa's"],
)
def test_the_exported_text_tower_is_open_clips_at_every_opset(tmp_path: Path, text: dict[str, Any], opset: int) -> None:
    whole: dict[str, Any] = {"custom_text": bool(text)}
    if text.get("embed_cls"):
        whole["multimodal_cfg"] = MULTIMODAL
    model = load(tmp_path, whole=whole, **text)
    session, ids = graph_of(model, opset, tmp_path)
    assert {node.name for node in session.get_inputs()} == {"token_ids"}

    for count in (1, 2, 5):
        (found,) = session.run(None, {"token_ids": ids[:count].numpy()})
        wanted = nn.functional.normalize(TextTower.reference(model.module, ids[:count]), dim=-1).detach().numpy()
        assert np.abs(found - wanted).max() < 1e-5
