"""The vision towers that can be exported: one file per family, one line each in `TOWERS`."""

from torch import nn

from calipso_export.towers.base import Tower
from calipso_export.towers.coca import CocaTower
from calipso_export.towers.resnet import ResNetTower
from calipso_export.towers.timm_maps import ConvNextTower, FastVitTower, SwinTower
from calipso_export.towers.timm_trunk import TimmTower
from calipso_export.towers.timm_vit import EvaTower, TimmVitTower
from calipso_export.towers.vit import VitTower
from calipso_runtime.errors import ModelError

__all__ = ["TOWERS", "Tower", "tower_class", "tower_of"]

# The first that accepts a module restates it: `TimmTower` takes what no other does.
TOWERS: tuple[type[Tower], ...] = (
    VitTower,
    CocaTower,
    ResNetTower,
    TimmVitTower,
    EvaTower,
    ConvNextTower,
    SwinTower,
    FastVitTower,
    TimmTower,
)


def tower_class(visual: nn.Module) -> type[Tower]:
    """The tower that restates an open_clip vision module.

    Raises:
        ModelError: none does.
    """
    for tower in TOWERS:
        if tower.accepts(visual):
            return tower
    families = ", ".join(tower.family for tower in TOWERS)
    message = (
        f"the vision tower {type(visual).__name__} cannot be exported: implemented families are {families}. "
        "docs/extending.md says how to add one"
    )
    raise ModelError(message)


def tower_of(visual: nn.Module) -> Tower:
    """An open_clip vision module as it is exported: with tokens where they are defined.

    Raises:
        ModelError: it cannot be, and why.
    """
    tower = tower_class(visual)
    return tower(visual, with_tokens=tower.why_no_tokens(visual) is None).eval()
