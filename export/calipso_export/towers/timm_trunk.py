"""Towers that open_clip takes from timm: a trunk, the trunk's own head, and open_clip's projection behind it.

The trunk's own modules run, over the same parameters, with their attention restated (`timm_attention.py`).

Source of the token rule: CALIP takes spatial features through the layers that lead the global feature to the joint
space. Here: a position's token is what the head gives for a picture that consists of this position alone. It is
defined where the head pools by picking or averaging positions; an attention pool mixes them on the way.
"""

from typing import Any, ClassVar, cast

import torch
from torch import nn

from calipso_export.clip import open_clip
from calipso_export.towers.base import Tower, shared
from calipso_export.towers.timm_attention import restate_attention


class TimmTower(Tower):
    """Any trunk of timm; families whose tokens are known subclass it.

    Attributes:
        trunks: timm's classes that are of this family; all others are of none, and have no tokens.
    """

    family = "timm"
    trunks: ClassVar[tuple[type, ...]] = ()

    def __init__(self, visual: nn.Module, *, with_tokens: bool) -> None:
        super().__init__(visual, with_tokens=with_tokens)
        self.visual = shared(visual)
        restate_attention(self.visual)

    @classmethod
    def accepts(cls, visual: nn.Module) -> bool:
        """open_clip's adapter around a trunk of this family."""
        if not isinstance(visual, open_clip.timm_model.TimmModel):
            return False
        return not cls.trunks or isinstance(cast("Any", visual).trunk, cls.trunks)

    @classmethod
    def why_no_tokens(cls, visual: nn.Module) -> str | None:
        """Which pooling mixes the positions, or that it is not known whether one does."""
        module = cast("Any", visual)
        if "pool" in module.head._modules or getattr(module.trunk, "attn_pool", None) is not None:  # noqa: SLF001
            return "it pools with attention, which mixes all patches before they reach the joint space"
        if not cls.trunks:
            return (
                f"how timm's {type(module.trunk).__name__} leads a single position to the joint space is not known here"
            )
        return None

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Tower.forward`."""
        features = cast("Any", self.visual).trunk.forward_features(image)
        tokens = self._tokens(self.visual, features) if self.with_tokens else None
        return _head(self.visual, features), tokens

    @classmethod
    def reference(cls, visual: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The trunk and the head as timm has them, which is all that open_clip's forward calls."""
        features = cast("Any", visual).trunk.forward_features(image)
        tokens = None if cls.why_no_tokens(visual) is not None else cls._tokens(visual, features)
        return _head(visual, features), tokens

    @classmethod
    def _tokens(cls, visual: nn.Module, features: torch.Tensor) -> torch.Tensor:
        alone = cls._alone(visual, features)
        return _head(visual, alone.flatten(0, 1)).reshape(*alone.shape[:2], -1)

    @staticmethod
    def _alone(visual: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """What the trunk gives -> [B,P,...], where each [...] is what it would give for a picture of one position."""
        raise NotImplementedError


def _head(visual: nn.Module, features: torch.Tensor) -> torch.Tensor:
    module = cast("Any", visual)
    return cast("torch.Tensor", module.head(module.trunk.forward_head(features)))
