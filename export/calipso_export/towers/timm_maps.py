"""timm's towers that end in a feature map: ConvNeXt, Swin, and MobileCLIP's FastViT."""

import types
from typing import Any, ClassVar, cast

import torch
from torch import nn

from calipso_export.clip import timm
from calipso_export.towers.base import attend
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
    """timm's `FastVit`: parallel branches of convolutions and batch norms, which become one convolution each.

    So do the norms before attention and the layer scales behind its branches; attention's layers become 1x1
    convolutions, for a map has no rows.
    """

    family = "fastvit"
    trunks: ClassVar[tuple[type, ...]] = (timm.models.FastVit,)

    def __init__(self, visual: nn.Module, *, with_tokens: bool) -> None:
        super().__init__(visual, with_tokens=with_tokens)
        with torch.no_grad():
            self._fold(cast("Any", self.visual).trunk)

    @staticmethod
    def _fold(trunk: nn.Module) -> None:
        timm.utils.reparameterize_model(trunk, inplace=True)
        for block in cast("Any", trunk).modules():
            if isinstance(block, timm.models.fastvit.RepMixerBlock):
                _fold_scale(block, "layer_scale", block.mlp.fc2)
            elif isinstance(block, timm.models.fastvit.AttentionBlock):
                _fold_attention(block)


def _fold_attention(block: Any) -> None:
    mixer = block.token_mixer
    mixer.qkv, mixer.proj = _as_convolution(mixer.qkv), _as_convolution(mixer.proj)
    # The largest FastViTs norm every position by itself: that is no convolution.
    if isinstance(block.norm, nn.BatchNorm2d):
        _fold_norm(block, mixer.qkv)
    _fold_scale(block, "layer_scale_1", mixer.proj)
    _fold_scale(block, "layer_scale_2", block.mlp.fc2)
    mixer.forward = types.MethodType(_map_attention, mixer)


def _as_convolution(linear: nn.Linear) -> nn.Conv2d:
    """Over the same bytes."""
    made = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=False)
    made.weight = _frozen(linear.weight[:, :, None, None])
    made.bias = None if linear.bias is None else _frozen(linear.bias)
    return made


def _fold_norm(block: Any, convolution: nn.Conv2d) -> None:
    """`W (s x + t) + b = (W s) x + (W t + b)`."""
    norm, weight = block.norm, convolution.weight[:, :, 0, 0].double()
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    bias = weight @ shift if convolution.bias is None else weight @ shift + convolution.bias.double()
    convolution.weight = _frozen((weight * scale).float()[:, :, None, None])
    convolution.bias = _frozen(bias.float())
    block.norm = nn.Identity()


def _fold_scale(block: Any, name: str, convolution: nn.Conv2d) -> None:
    """`c (W x + b) = (c W) x + c b`, one c per channel."""
    scale = getattr(block, name)
    if isinstance(scale, nn.Identity):
        return
    convolution.weight = _frozen(convolution.weight * scale.gamma[..., None])
    convolution.bias = None if convolution.bias is None else _frozen(convolution.bias * scale.gamma.flatten())
    setattr(block, name, nn.Identity())


def _frozen(values: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)


def _map_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """[B,C,h,w] -> the same: every position is a token."""
    query, key, value = module.qkv(x).permute(0, 2, 3, 1).flatten(1, 2).chunk(3, dim=-1)
    attended = attend(query, key, value, heads=module.num_heads)
    by_row = attended.reshape(-1, *x.shape[2:], x.shape[1])
    return cast("torch.Tensor", module.proj(by_row.permute(0, 3, 1, 2)))
