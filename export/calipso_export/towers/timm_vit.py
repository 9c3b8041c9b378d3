"""timm's Vision Transformers: SigLIP, ViTamin, MobileCLIP-B and -L, EVA01, EVA02, PE-Core, relative positions."""

from typing import Any, ClassVar, cast

import torch
from torch import nn

from calipso_export.clip import timm
from calipso_export.towers.timm_attention import only_class_token
from calipso_export.towers.timm_trunk import TimmTower


class TimmVitTower(TimmTower):
    """timm's `VisionTransformer`, also with a convolutional stem (ViTamin, MobileCLIP-B) or relative positions."""

    family = "timm-vit"
    trunks: ClassVar[tuple[type, ...]] = (
        timm.models.VisionTransformer,
        timm.models.vision_transformer_relpos.VisionTransformerRelPos,
    )

    def __init__(self, visual: nn.Module, *, with_tokens: bool) -> None:
        super().__init__(visual, with_tokens=with_tokens)
        trunk = cast("Any", self.visual).trunk
        if not with_tokens and trunk.global_pool == "token" and getattr(trunk, "attn_pool", None) is None:
            only_class_token(trunk.blocks[-1])

    @property
    def rows(self) -> int:
        """Patches, and class and register tokens."""
        trunk = cast("Any", self.visual).trunk
        return int(trunk.patch_embed.num_patches + trunk.num_prefix_tokens)

    @staticmethod
    def _alone(visual: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """Every patch as the class token, or behind as many of itself as its pooling leaves out."""
        trunk = cast("Any", visual).trunk
        prefix = trunk.num_prefix_tokens
        patches = features[:, prefix:].unsqueeze(2)
        return patches if trunk.global_pool == "token" else patches.expand(-1, -1, prefix + 1, -1)


class EvaTower(TimmVitTower):
    """timm's `Eva`: EVA01, EVA02 and, with an attention pool, PE-Core."""

    family = "eva"
    trunks: ClassVar[tuple[type, ...]] = (timm.models.Eva,)
