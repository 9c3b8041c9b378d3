"""The eager model as one module: open_clip's own tower and the heads by their published formulas.

It is what the eager contenders run, what torch.compile compiles, and what is exported plainly. The
tower is passed once: where CALIP needs the spatial tokens, the global feature comes with them.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.clip import open_clip
from calipso_export.heads import calip, few_shot_class, zero_shot
from calipso_export.heads.few_shot import FewShotHead
from calipso_export.reference import HeadTensors
from calipso_export.towers import Tower, tower_class
from calipso_export.towers.base import own_feature

if TYPE_CHECKING:
    # It imports onnx, which a process that only runs the model does not need.
    from calipso_export.rebuild import Rebuilt

_HEADS_FILE = "eager.pt"
_CHECKPOINT_SUFFIX = ".checkpoint.pt"


class EagerModule(nn.Module):
    """float32 [B,3,H,W] -> (logits [B,K], L2-normalised embedding [B,D])."""

    def __init__(self, visual: nn.Module, heads: HeadTensors, *, scale: float, bias: float) -> None:
        super().__init__()
        self.visual = visual
        self.tower: type[Tower] = tower_class(visual)
        self.calip_parameters = heads.calip
        self.centred = heads.centred
        self.few_shot = heads.few_shot
        self.scale = scale
        self.bias = bias
        self.register_buffer("text", heads.text)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify normalised images."""
        tokens = None
        if self.calip_parameters is not None:
            pooled, tokens = self.tower.reference(self.visual, image)
        else:
            pooled = own_feature(self.visual, image)
        embedding = functional.normalize(pooled, dim=-1)
        text = cast("torch.Tensor", self.text)
        logits = zero_shot.reference(embedding, text, scale=self.scale, bias=self.bias)
        if tokens is not None and self.calip_parameters is not None:
            tokens = functional.normalize(tokens, dim=-1)
            logits = logits + calip.reference(
                embedding, tokens, text, self.calip_parameters, scale=self.scale, centred=self.centred
            )
        if self.few_shot is not None:
            logits = logits + self.few_shot(embedding, text, self.scale)
        return logits, embedding


class Encoder(nn.Module):
    """float32 [B,3,H,W] -> L2-normalised embedding [B,D], and nothing else."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode normalised images."""
        return functional.normalize(own_feature(self.visual, image), dim=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EagerModel:
    """A classifier in eager PyTorch.

    Attributes:
        module: in eval mode, float32, on the CPU.
        transform: open_clip's evaluation transform: PIL image -> float32 [3,H,W].
    """

    module: EagerModule
    transform: Any


def of_rebuilt(rebuilt: "Rebuilt") -> EagerModel:
    """The eager side of a bundle as one module."""
    model = rebuilt.model
    module = EagerModule(model.visual, rebuilt.heads, scale=model.scale, bias=model.bias)
    return EagerModel(module=module.eval().requires_grad_(requires_grad=False), transform=model.transform)


def save(rebuilt: "Rebuilt", folder: Path, *, config: Path | None) -> Path:
    """Write what a user of open_clip would have on disk: a checkpoint, and a file with the heads.

    Args:
        rebuilt: the eager side of a bundle.
        folder: where to.
        config: open_clip's configuration of the model where it is not a built-in one.
    """
    path = folder / _HEADS_FILE
    model, heads = rebuilt.model, rebuilt.heads
    few_shot = heads.few_shot
    torch.save(model.module.state_dict(), path.with_suffix(_CHECKPOINT_SUFFIX))
    document = {
        "name": model.name,
        "config": None if config is None else str(config.absolute()),
        "preprocess": dataclasses.asdict(model.preprocess),
        "scale": model.scale,
        "bias": model.bias,
        "text": heads.text,
        "few_shot": None if few_shot is None else _few_shot_document(few_shot),
        "calip": None if heads.calip is None else dataclasses.asdict(heads.calip),
        "centred": heads.centred,
    }
    torch.save(document, path)
    return path


def load(path: Path) -> EagerModel:
    """Load what `save` wrote the way a user does: open_clip builds the model from its checkpoint."""
    document = torch.load(path, weights_only=True)
    if document["config"] is not None:
        open_clip.add_model_config(Path(document["config"]))
    settings = {name: value for name, value in document["preprocess"].items() if name != "size"}
    model, _, transform = open_clip.create_model_and_transforms(
        document["name"], pretrained=str(path.with_suffix(_CHECKPOINT_SUFFIX)), **_overrides(settings)
    )
    calip_parameters, few_shot = document["calip"], document["few_shot"]
    heads = HeadTensors(
        text=document["text"],
        few_shot=None
        if few_shot is None
        else few_shot_class(few_shot["name"])(**few_shot["tensors"], **few_shot["numbers"]),
        calip=None if calip_parameters is None else calip.CalipParameters(**calip_parameters),
        centred=document["centred"],
    )
    module = EagerModule(cast("nn.Module", model.visual), heads, scale=document["scale"], bias=document["bias"])
    return EagerModel(module=module.eval().requires_grad_(requires_grad=False), transform=transform)


def _few_shot_document(head: FewShotHead) -> dict[str, Any]:
    return {"name": head.name, "tensors": dict(head.state_dict()), "numbers": head.parameters_by_name()}


def _overrides(preprocess: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_mean": preprocess["mean"],
        "image_std": preprocess["std"],
        "image_interpolation": preprocess["interpolation"],
        "image_resize_mode": preprocess["resize_mode"],
    }
