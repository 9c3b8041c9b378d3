"""OpenAI-style Vision Transformer: class token and patch tokens through `ln_post` and `proj`.

Source of the token rule: CALIP's released code (ZiyuGuo99/CALIP, clip/model.py) projects every
token like the class token; the class token is the global feature, the patches are the spatial ones.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.clip import open_clip
from calipso_export.towers.base import Tower, attend
from calipso_runtime.errors import ModelError


class VitTower(Tower):
    """open_clip's `VisionTransformer`, class-token or average pooled."""

    family = "vit"

    def __init__(self, visual: nn.Module, *, with_tokens: bool) -> None:
        super().__init__(visual, with_tokens=with_tokens)
        module = cast("Any", visual)
        unknown = {type(block).__name__ for block in module.transformer.resblocks} - {
            open_clip.transformer.ResidualAttentionBlock.__name__
        }
        if unknown or not self._pools(module):
            message = f"this ViT has blocks {sorted(unknown)} and pooling {module.pool_type!r}: not implemented"
            raise ModelError(message)

    @staticmethod
    def _pools(visual: Any) -> bool:
        return visual.pool_type in ("tok", "avg")

    @classmethod
    def accepts(cls, visual: nn.Module) -> bool:
        """Only open_clip's own class: a timm ViT orders its parameters differently."""
        return isinstance(visual, open_clip.transformer.VisionTransformer) and visual.attn_pool is None

    @property
    def rows(self) -> int:
        """Patches and the class token."""
        return int(cast("Any", self.visual).positional_embedding.shape[0])

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Tower.forward`."""
        visual = cast("Any", self.visual)
        x, last = before_last_block(visual, image)
        if visual.pool_type == "tok":
            # Without tokens only the class token leaves the last block: the others are its keys and values alone.
            x = visual.ln_post(block(last, x) if self.with_tokens else block(last, x, queries=1)) @ visual.proj
            return x[:, 0], x[:, 1:] if self.with_tokens else None
        x = block(last, x)[:, 1:]
        tokens = visual.ln_post(x) @ visual.proj if self.with_tokens else None
        if visual.final_ln_after_pool:
            return visual.ln_post(x.mean(dim=1)) @ visual.proj, tokens
        return visual.ln_post(x).mean(dim=1) @ visual.proj, tokens

    @classmethod
    def reference(cls, visual: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """open_clip's own embedding, transformer and pooling; the tokens normed where it leaves them un-normed."""
        module = cast("Any", visual)
        x = module.transformer(module._embeds(image))  # noqa: SLF001
        pooled, _ = module._pool(x)  # noqa: SLF001
        return pooled @ module.proj, module.ln_post(x)[:, 1:] @ module.proj


def before_last_block(visual: Any, image: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Class token and patches [B,L,W] as they reach the last block, and that block."""
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.expand(x.shape[0], 1, -1)
    x = visual.ln_pre(torch.cat([cls, x], dim=1) + visual.positional_embedding)
    *blocks, last = visual.transformer.resblocks
    for each in blocks:
        x = block(each, x)
    return x, last


def block(module: Any, x: torch.Tensor, *, queries: int | None = None) -> torch.Tensor:
    """A residual attention block; with `queries` only for so many of the first tokens, over keys of all."""
    attention = module.attn
    normed = module.ln_1(x)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if queries is None:
        query, key, value = functional.linear(normed, weight, bias).chunk(3, dim=-1)
    else:
        width = x.shape[-1]
        x = x[:, :queries]
        query = functional.linear(normed[:, :queries], weight[:width], bias[:width])
        key, value = functional.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    attended = attention.out_proj(attend(query, key, value, heads=attention.num_heads))
    x = x + module.ls_1(attended)
    return cast("torch.Tensor", x + module.ls_2(module.mlp(module.ln_2(x))))
