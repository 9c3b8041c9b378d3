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


def only_class_token(block: nn.Module) -> None:
    """Let a block give its first token alone, in place: the others are its keys and values and no more.

    Blocks that are not known here stay as they are.
    """
    forward = OF_CLASS_TOKEN.get(type(block))
    if forward is not None and type(cast("Any", block).attn) in RESTATED:
        cast("Any", block).attn.queries = 1
        cast("Any", block).forward = types.MethodType(forward, block)


def _block(module: Any, x: torch.Tensor, **given: Any) -> torch.Tensor:
    x = x[:, :1] + module.ls1(module.attn(module.norm1(x), **given))
    return cast("torch.Tensor", x + module.ls2(module.mlp(module.norm2(x))))


def _eva_block(module: Any, x: torch.Tensor, **given: Any) -> torch.Tensor:
    attended = module.attn(module.norm1(x), **given)
    x = x[:, :1] + (attended if module.gamma_1 is None else module.gamma_1 * attended)
    mixed = module.mlp(module.norm2(x))
    return cast("torch.Tensor", x + (mixed if module.gamma_2 is None else module.gamma_2 * mixed))


def _asking(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The tokens that are asked for: the first `queries`, or all."""
    queries: int | None = getattr(module, "queries", None)
    return x if queries is None else x[:, :queries]


def _self_attention(module: Any, x: torch.Tensor, **_: object) -> torch.Tensor:
    query, key, value = module.qkv(x).chunk(3, dim=-1)
    return _attended(module, _asking(module, x), _asking(module, query), key, value)


def _rotary_attention(module: Any, x: torch.Tensor, rope: torch.Tensor | None = None, **_: object) -> torch.Tensor:
    query, key, value = _projected(module, x)
    x, query = _asking(module, x), _asking(module, query)
    if rope is None:
        return _attended(module, x, query, key, value)
    sine, cosine = _rotation(rope, prefix=module.num_prefix_tokens)
    normed = [_normed(norm, part, module) for norm, part in ((module.q_norm, query), (module.k_norm, key))]
    turned = [
        part * cosine[: part.shape[1]] + _quarter_turn(part, half=module.rotate_half) * sine[: part.shape[1]]
        for part in normed
    ]
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
    timm.layers.AttentionPoolLatent: _latent_pool,
}
OF_CLASS_TOKEN: Mapping[type, Callable[..., torch.Tensor]] = {
    timm.models.vision_transformer.Block: _block,
    timm.models.eva.EvaBlock: _eva_block,
}
