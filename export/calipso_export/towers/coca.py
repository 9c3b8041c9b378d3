"""CoCa's Vision Transformer: learned queries attend over its tokens, and the first of what they gather is the feature.

The others caption, which nothing here needs: only the first query is in the graph.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.clip import open_clip
from calipso_export.towers.base import attend, own_feature
from calipso_export.towers.vit import VitTower, before_last_block, block


class CocaTower(VitTower):
    """open_clip's `VisionTransformer` with an attention pooler, also with one pooler for captions and one besides."""

    family = "coca"

    @staticmethod
    def _pools(visual: Any) -> bool:
        return visual.attn_pool_contrastive is not None or visual.pool_type in ("tok", "avg")

    @classmethod
    def accepts(cls, visual: nn.Module) -> bool:
        """Only open_clip's own class."""
        return isinstance(visual, open_clip.transformer.VisionTransformer) and visual.attn_pool is not None

    @classmethod
    def why_no_tokens(cls, visual: nn.Module) -> str | None:
        """What reaches the joint space are queries, each of which has seen all patches."""
        del visual
        return "it pools with attention, and what reaches the joint space are learned queries, not patches"

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Tower.forward`."""
        visual = cast("Any", self.visual)
        x, last = before_last_block(visual, image)
        x = block(last, x)
        if visual.attn_pool_contrastive is None:
            x = _pooled(visual.attn_pool, x, queries=1 if visual.pool_type == "tok" else None)
            x = visual.ln_post(x)
            pooled = x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(dim=1)
        else:
            x = visual.ln_post(x)
            if visual.attn_pool_type == "cascade":
                x = _pooled(visual.attn_pool, x)
            pooled = _pooled(visual.attn_pool_contrastive, x)[:, 0]
        return pooled @ visual.proj, None

    @classmethod
    def reference(cls, visual: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """open_clip's own forward."""
        return own_feature(visual, image), None


def _pooled(pooler: Any, x: torch.Tensor, *, queries: int | None = None) -> torch.Tensor:
    """What the first queries gather from tokens [B,L,W]: [B,queries,D]; all of them where None."""
    attention, width = pooler.attn, pooler.attn.embed_dim
    # Slices of a constant are folded, the parts of a Split are not.
    parts = [slice(start, start + width) for start in (0, width, 2 * width)]
    weights = (
        (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        if attention.in_proj_weight is None
        else [attention.in_proj_weight[part] for part in parts]
    )
    x = pooler.ln_k(x)
    given = (pooler.ln_q(pooler.query[:queries]).unsqueeze(0), x, x)
    query, key, value = (
        functional.linear(each, weight, attention.in_proj_bias[part])
        for each, weight, part in zip(given, weights, parts, strict=True)
    )
    return cast("torch.Tensor", attention.out_proj(attend(query, key, value, heads=attention.num_heads)))
