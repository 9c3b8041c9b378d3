"""Weights of transformers' CLIPModel and SiglipModel under the names that open_clip has for them.

The two libraries hold the same networks: queries, keys and values are one matrix in open_clip, and CLIP's projections
are transposed. Sources: transformers' modeling_clip.py and modeling_siglip.py; open_clip's model.py; timm's
vision_transformer.py. Held against transformers' own forward pass in tests/export/test_hf_weights.py.
"""

import re
from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]
_MARK = "vision_model.embeddings.patch_embedding.weight"
_SIGLIP_MARK = "vision_model.head.probe"
_LAYER = re.compile(r"^(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)$")
# transformers' CLIP has this spelling.
_CLIP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    _MARK: "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
_SIGLIP = {
    "vision_model.embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm": "visual.trunk.norm",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj": "visual.trunk.attn_pool.proj",
    "vision_model.head.layernorm": "visual.trunk.attn_pool.norm",
    "vision_model.head.mlp": "visual.trunk.attn_pool.mlp",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm": "text.ln_final",
    "text_model.head": "text.text_projection",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}
# Inside a layer: of open_clip's transformer, and of timm's.
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TIMM_LAYER = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("q_proj", "k_proj", "v_proj")
_TRANSPOSED = ("visual.proj", "text_projection")
_BUFFERS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")


def is_hugging_face(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the names are transformers'."""
    return any(name.endswith(_MARK) for name in state)


def to_open_clip(state: Mapping[str, torch.Tensor]) -> State:
    """Rename, join and transpose; what is unknown keeps its name, so that loading names it.

    Args:
        state: of a CLIPModel or SiglipModel, with whatever stands before `vision_model.` in all names.
    """
    prefix = next(name.removesuffix(_MARK) for name in state if name.endswith(_MARK))
    own = {name.removeprefix(prefix): value for name, value in state.items()}
    is_siglip = _SIGLIP_MARK in own
    found: State = {}
    joined: dict[str, State] = {}
    for name, value in own.items():
        if name in _BUFFERS:
            continue
        if (layer := _LAYER.match(name)) is not None:
            tower, number, inner = layer.groups()
            is_timm = is_siglip and tower == "vision"
            target = _layer(tower, number, is_timm=is_timm, is_siglip=is_siglip)
            module, _, kind = inner.rpartition(".")
            if module.removeprefix("self_attn.") in _QKV:
                whole = f"{target}.attn.qkv.{kind}" if is_timm else f"{target}.attn.in_proj_{kind}"
                joined.setdefault(whole, {})[module.removeprefix("self_attn.")] = value
                continue
            names = _TIMM_LAYER if is_timm else _OPEN_CLIP_LAYER
            found[f"{target}.{names.get(module, module)}.{kind}"] = value
            continue
        found |= _outside(name, value, is_siglip=is_siglip)
    found |= {
        name: torch.cat([parts[each] for each in _QKV])
        for name, parts in joined.items()
        if all(each in parts for each in _QKV)
    }
    return found


def _layer(tower: str, number: str, *, is_timm: bool, is_siglip: bool) -> str:
    if is_timm:
        return f"visual.trunk.blocks.{number}"
    if tower == "vision":
        return f"visual.transformer.resblocks.{number}"
    return f"{'text.' if is_siglip else ''}transformer.resblocks.{number}"


def _outside(name: str, value: torch.Tensor, *, is_siglip: bool) -> State:
    """A tensor that lies in no layer."""
    if is_siglip and name.startswith("vision_model.head.attention.in_proj_"):
        kind = name.rpartition("_")[2]
        width = len(value) // 3
        pool = "visual.trunk.attn_pool"
        return {f"{pool}.q.{kind}": value[:width], f"{pool}.kv.{kind}": value[width:]}
    table = _SIGLIP if is_siglip else _CLIP
    for theirs, ours in table.items():
        if name == theirs or name.startswith(f"{theirs}."):
            target = ours + name.removeprefix(theirs)
            if target in _TRANSPOSED:
                return {target: value.T.contiguous()}
            return {target: value[None] if target == "visual.trunk.pos_embed" else value}
    return {name: value}
