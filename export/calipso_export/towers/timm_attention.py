"""timm's attentions, restated with `attend`, over the modules' own parameters: what replaces their forward functions.

timm's own exports as `scaled_dot_product_attention`, or as five-dimensional transposes that no engine's kernel knows.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.clip import timm
from calipso_export.towers.base import attend

_WITH_HEADS = 2


def restate_attention(module: nn.Module) -> None:
    """Make every attention below a module export as plain products, in place: give it a module of `shared`."""
    for part in cast("Any", module).modules():
        restated = RESTATED.get(type(part))
        if restated is not None:
            part.forward = types.MethodType(restated, part)
        elif hasattr(part, "fused_attn"):
            part.fused_attn = False


def _self_attention(module: Any, x: torch.Tensor, **_: object) -> torch.Tensor:
    query, key, value = module.qkv(x).chunk(3, dim=-1)
    return _attended(module, x, query, key, value)


def _rotary_attention(module: Any, x: torch.Tensor, rope: torch.Tensor | None = None, **_: object) -> torch.Tensor:
    query, key, value = _projected(module, x)
    if rope is None:
        return _attended(module, x, query, key, value)
    sine, cosine = _rotation(rope, prefix=module.num_prefix_tokens)
    normed = [_normed(norm, part, module) for norm, part in ((module.q_norm, query), (module.k_norm, key))]
    turned = [part * cosine + _quarter_turn(part, half=module.rotate_half) * sine for part in normed]
    return _after(module, x, attend(turned[0].flatten(2), turned[1].flatten(2), value, heads=module.num_heads))


def _projected(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values [B,L,W], by whichever layers the module has."""
    if module.qkv is None:
        return tuple(layer(x) for layer in (module.q_proj, module.k_proj, module.v_proj))
    if getattr(module, "q_bias", None) is None:
        return cast("tuple[torch.Tensor, ...]", module.qkv(x).chunk(3, dim=-1))
    bias = torch.cat([module.q_bias, module.k_bias, module.v_bias])
    return functional.linear(x, module.qkv.weight, bias).chunk(3, dim=-1)


def _rotation(rope: torch.Tensor, *, prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine and cosine [L,1 or H,E] of every token's angles; the tokens before the patches are not turned.

    Args:
        rope: sine beside cosine, of the patches: [P,2E], or [H,P,2E].
        prefix: how many tokens there are before the patches.
    """
    by_token = rope.unsqueeze(1) if rope.ndim == _WITH_HEADS else rope.transpose(0, 1)
    # Slices of a constant are folded, the parts of a Split are not.
    size = by_token.shape[-1] // 2
    sine, cosine = by_token[..., :size], by_token[..., size:]
    pad = (0, 0, 0, 0, prefix, 0)
    return functional.pad(sine, pad), functional.pad(cosine, pad, value=1.0)


def _quarter_turn(x: torch.Tensor, *, half: bool) -> torch.Tensor:
    """Pairs (a, b) -> (-b, a); a pair are neighbours, or elements half of the axis apart."""
    if half:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)


def _latent_pool(module: Any, x: torch.Tensor, **_: object) -> torch.Tensor:
    """Learned queries attend over all tokens; they are the same for every picture."""
    if module.pos_embed is not None:
        x = x + module.pos_embed
    key, value = module.kv(x).chunk(2, dim=-1)
    query = _normed(module.q_norm, module.q(module.latent), module).flatten(2)
    key = _normed(module.k_norm, key, module).flatten(2)
    x = module.proj(attend(query, key, value, heads=module.num_heads))
    if module.mlp is not None:
        x = x + module.mlp(module.norm(x))
    if module.pool == "token":
        return x[:, 0]
    return x.mean(dim=1) if module.pool == "avg" else x


def _map_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """[B,C,h,w] -> the same: every position is a token."""
    query, key, value = module.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
    rows = module.proj(attend(query, key, value, heads=module.num_heads))
    return cast("torch.Tensor", rows.transpose(1, 2).reshape(x.shape))


def _normed(norm: nn.Module, x: torch.Tensor, module: Any) -> torch.Tensor:
    """[B,L,W] -> [B,L,H,E], where timm norms queries and keys, if it does."""
    return cast("torch.Tensor", norm(x.reshape(*x.shape[:-1], module.num_heads, -1)))


def _attended(
    module: Any, x: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    if not isinstance(module.q_norm, nn.Identity):
        query, key = _normed(module.q_norm, query, module).flatten(2), _normed(module.k_norm, key, module).flatten(2)
    return _after(module, x, attend(query, key, value, heads=module.num_heads))


def _after(module: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Norm, gate and projection of what was gathered; the gate reads the layer's input."""
    attended = module.norm(attended)
    if module.gate is not None:
        attended = attended * module.gate(x).sigmoid()
    return cast("torch.Tensor", module.proj(attended))


RESTATED: Mapping[type, Callable[..., torch.Tensor]] = {
    timm.models.vision_transformer.Attention: _self_attention,
    timm.models.eva.EvaAttention: _rotary_attention,
    timm.models.eva.AttentionRope: _rotary_attention,
    timm.models.fastvit.Attention: _map_attention,
    timm.layers.AttentionPoolLatent: _latent_pool,
}
