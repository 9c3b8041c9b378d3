"""ModifiedResNet: the attention pool queries every position, not only the mean.

Source of the token rule: CALIP's released code (ZiyuGuo99/CALIP, clip/model.py) lets all tokens of
the attention pool be queries and applies `c_proj` to all; the mean query gives the global feature.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.clip import open_clip
from calipso_export.towers.base import Tower, attend


class ResNetTower(Tower):
    """open_clip's `ModifiedResNet` (RN50 to RN50x64)."""

    family = "resnet"

    @classmethod
    def accepts(cls, visual: nn.Module) -> bool:
        """Only open_clip's own class."""
        return isinstance(visual, open_clip.modified_resnet.ModifiedResNet)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Tower.forward`."""
        pool = cast("Any", self.visual).attnpool
        x = _pool_input(pool, _feature_map(self.visual, image))
        query = pool.q_proj(x if self.with_tokens else x[:, :1])
        pooled = pool.c_proj(attend(query, pool.k_proj(x), pool.v_proj(x), heads=pool.num_heads))
        return pooled[:, 0], pooled[:, 1:] if self.with_tokens else None

    @classmethod
    def reference(cls, visual: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """open_clip's own trunk, and torch's own multi-head attention, which its pool uses too, over all positions."""
        pool = cast("Any", visual).attnpool
        x = _pool_input(pool, _feature_map(visual, image)).transpose(0, 1)
        pooled, _ = functional.multi_head_attention_forward(
            query=x,
            key=x,
            value=x,
            embed_dim_to_check=x.shape[-1],
            num_heads=pool.num_heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=pool.c_proj.weight,
            out_proj_bias=pool.c_proj.bias,
            training=False,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=pool.q_proj.weight,
            k_proj_weight=pool.k_proj.weight,
            v_proj_weight=pool.v_proj.weight,
        )
        pooled = pooled.transpose(0, 1)
        return pooled[:, 0], pooled[:, 1:]


def _feature_map(visual: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """[B,3,H,W] -> [B,C,H/32,W/32]: everything before the attention pool."""
    module = cast("Any", visual)
    x = module.stem(image)
    for layer in (module.layer1, module.layer2, module.layer3, module.layer4):
        x = layer(x)
    return cast("torch.Tensor", x)


def _pool_input(pool: Any, features: torch.Tensor) -> torch.Tensor:
    """[B,C,h,w] -> [B,h*w+1,C]: the mean and every position, with their positional embedding."""
    x = features.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    return cast("torch.Tensor", x + pool.positional_embedding)
