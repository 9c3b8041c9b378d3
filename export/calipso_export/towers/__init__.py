"""The vision towers that can be exported: one file each, one line each in `TOWERS`."""

from torch import nn

from calipso_export.towers.base import Tower
from calipso_export.towers.resnet import ResNetTower
from calipso_export.towers.vit import VitTower
from calipso_runtime.errors import ModelError

__all__ = ["TOWERS", "Tower", "tower_class"]

TOWERS: tuple[type[Tower], ...] = (VitTower, ResNetTower)


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
