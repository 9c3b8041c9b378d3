"""timm's towers that end in a feature map: ConvNeXt, Swin, and MobileCLIP's FastViT."""

from typing import Any, ClassVar, cast

import torch
from torch import nn

from calipso_export.clip import timm
from calipso_export.towers.timm_trunk import TimmTower


class ConvNextTower(TimmTower):
    """timm's `ConvNeXt`: the map's mean is normed and projected."""

    family = "convnext"
    trunks: ClassVar[tuple[type, ...]] = (timm.models.ConvNeXt,)

    @staticmethod
    def _alone(visual: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """[B,C,h,w] -> [B,h*w,C,1,1]."""
        del visual
        return features.flatten(2).transpose(1, 2)[..., None, None]


class SwinTower(TimmTower):
    """timm's `SwinTransformer`: the map is normed, and its mean projected."""

    family = "swin"
    trunks: ClassVar[tuple[type, ...]] = (timm.models.SwinTransformer,)

    @staticmethod
    def _alone(visual: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """[B,h,w,C] -> [B,h*w,1,1,C]."""
        del visual
        return features.flatten(1, 2)[:, :, None, None]


class FastVitTower(ConvNextTower):
    """timm's `FastVit`: parallel branches of convolutions and batch norms, which become one convolution each."""

    family = "fastvit"
    trunks: ClassVar[tuple[type, ...]] = (timm.models.FastVit,)

    def __init__(self, visual: nn.Module, *, with_tokens: bool) -> None:
        super().__init__(visual, with_tokens=with_tokens)
        with torch.no_grad():
            timm.utils.reparameterize_model(cast("Any", self.visual).trunk, inplace=True)
