"""Tiny members of every family of timm's towers: timm's own functions with fewer and narrower layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export_samples import CLASSES, TEXT, write_model

from calipso_export import ExportConfig
from calipso_export.clip import timm
from calipso_export.models import LoadedModel, load_model

SIZE, WIDTH = 32, 32
_VIT = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2, "img_size": SIZE}
_FAST = {"layers": (1, 1, 1), "embed_dims": (32, 32, 64), "token_mixers": ("repmixer", "repmixer", "attention")}
_MCI = {**_FAST, "mlp_ratios": (2, 2, 2), "se_downsamples": (False, False, True), "downsamples": (False, True, True)}

# By name: what timm's function makes it of, and what changes.
_TRUNKS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "calipso_tiny_siglip": ("vit_base_patch16_siglip_224", {**_VIT, "patch_size": 8}),
    "calipso_tiny_clip": ("vit_large_patch14_clip_224", {**_VIT, "patch_size": 8}),
    "calipso_tiny_norms": (
        "vit_large_patch14_clip_224",
        {**_VIT, "patch_size": 8, "qk_norm": True, "scale_attn_norm": True},
    ),
    "calipso_tiny_registers": ("vit_base_patch14_reg4_dinov2", {**_VIT, "patch_size": 8, "global_pool": "avg"}),
    "calipso_tiny_mci": ("vit_base_mci_224", {**_VIT, "embed_dim": 768}),
    "calipso_tiny_gap": ("vit_medium_patch16_gap_256", {**_VIT, "patch_size": 8}),
    "calipso_tiny_relpos": ("vit_relpos_medium_patch16_cls_224", {**_VIT, "patch_size": 8}),
    "calipso_tiny_vitamin": ("vitamin_small_224", {**_VIT, "embed_dim": 384, "num_heads": 6}),
    "calipso_tiny_eva01": ("eva_giant_patch14_224", {**_VIT, "patch_size": 8, "mlp_ratio": 2}),
    "calipso_tiny_eva02": ("eva02_base_patch16_clip_224", {**_VIT, "patch_size": 8}),
    "calipso_tiny_eva02_fused": ("eva02_base_patch16_clip_224", {**_VIT, "patch_size": 8, "qkv_fused": True}),
    "calipso_tiny_pe": ("vit_pe_core_base_patch16_224", {**_VIT, "patch_size": 8, "attn_pool_num_heads": 4}),
    "calipso_tiny_pe_half": (
        "vit_pe_core_base_patch16_224",
        {**_VIT, "patch_size": 8, "attn_pool_num_heads": 4, "rope_rotate_half": True},
    ),
    "calipso_tiny_convnext": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, WIDTH)}),
    "calipso_tiny_swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)},
    ),
    "calipso_tiny_fastvit": ("fastvit_mci0", _MCI),
    "calipso_tiny_fastvit_norms": ("fastvit_mci3", {**_MCI, "se_downsamples": (False,) * 3, "pos_embs": (None,) * 3}),
    "calipso_tiny_resnet": ("resnet10t", {}),
}


def _vision(name: str, pool: str, projection: str | None, size: int = SIZE) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": projection, "image_size": size}


# By what the configurations of open_clip that are like it are called.
TIMM: Mapping[str, dict[str, Any]] = {
    "MobileCLIP2-L": _vision("calipso_tiny_clip", "token", None),
    "MobileCLIP-B": _vision("calipso_tiny_mci", "token", None),
    "norms in the attention": _vision("calipso_tiny_norms", "token", "linear"),
    "registers": _vision("calipso_tiny_registers", "avg", "linear"),
    "vit_medium_gap": _vision("calipso_tiny_gap", "", "linear"),
    "vit_relpos_medium_cls": _vision("calipso_tiny_relpos", "", "linear"),
    "ViTamin": _vision("calipso_tiny_vitamin", "", "linear"),
    "EVA01": _vision("calipso_tiny_eva01", "token", None),
    "EVA02": _vision("calipso_tiny_eva02", "token", None),
    "EVA02, one projection": _vision("calipso_tiny_eva02_fused", "token", None),
    "convnext": _vision("calipso_tiny_convnext", "", "linear", 64),
    "convnext_large_d": _vision("calipso_tiny_convnext", "", "mlp", 64),
    "swin": _vision("calipso_tiny_swin", "", "linear", 64),
    "MobileCLIP-S": _vision("calipso_tiny_fastvit", "avg", None, 64),
    "MobileCLIP2-S3": _vision("calipso_tiny_fastvit_norms", "avg", None, 64),
}
# Their tokens have no place in the joint space.
POOLED: Mapping[str, dict[str, Any]] = {
    "SigLIP": _vision("calipso_tiny_siglip", "map", "none"),
    "PE-Core": _vision("calipso_tiny_pe", "map", None),
    "PE-Core, halves turned": _vision("calipso_tiny_pe_half", "map", None),
}
# Of no family.
OTHER: Mapping[str, dict[str, Any]] = {"resnet10t": _vision("calipso_tiny_resnet", "avg", "linear")}


def _register(name: str, original: str, changes: dict[str, Any]) -> None:
    def make(*, pretrained: bool = False, **settings: Any) -> Any:
        del pretrained
        return timm.create_model(original, **{**changes, **settings})

    make.__name__ = name
    # Where timm looks for it.
    globals()[name] = make
    timm.models.register_model(make)


for _name, (_original, _changes) in _TRUNKS.items():
    _register(_name, _original, _changes)


def load_timm(folder: Path, vision: Mapping[str, Any], **changes: Any) -> LoadedModel:
    """A model with such a tower and a tiny text tower, with random weights."""
    document = {"embed_dim": WIDTH, "vision_cfg": dict(vision), "text_cfg": TEXT}
    path = write_model(folder / f"{folder.name}.json", document)
    settings = {"random_init": 3, "output": folder / "out.calipso", **changes}
    return load_model(ExportConfig(model=str(path), classes=CLASSES, **settings))
