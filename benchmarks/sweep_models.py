"""What open_clip lists, without building it: sizes on torch's meta device; and the same with fewer layers."""

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from calipso_export.clip import open_clip

FEWEST_LAYERS = 2
# What timm calls the layers of a network, or of its stages.
_STAGES = {"convnext": "depths", "swin": "depths", "fastvit": "layers"}
_STAGE_COUNT, _STAGE_COUNTS = 4, {"fastvit_mci3": 5, "fastvit_mci4": 5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of `open_clip.list_models()`.

    Attributes:
        name: in open_clip.
        trunk: class of its vision tower, timm's where open_clip wraps one.
        parameters: of the whole model; of the vision tower where the text tower's are only known to a hub.
        vision_parameters: of the vision tower.
        image_size: height and width.
        needs: the repository whose files its text tower needs, or None.
    """

    name: str
    trunk: str
    parameters: int
    vision_parameters: int
    image_size: tuple[int, int]
    needs: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        document = dataclasses.asdict(self)
        return {"model": document.pop("name"), **document, "image_size": list(self.image_size)}


def described(name: str) -> Listed:
    """Sizes of one, from modules that hold no numbers."""
    config = open_clip.get_model_config(name)
    needs = config["text_cfg"].get("hf_model_name")
    with torch.device("meta"):
        if needs is None:
            parts = open_clip.create_model(name, device="meta")
            visual = parts.visual
        else:
            visual = parts = open_clip.model._build_vision_tower(  # noqa: SLF001
                config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)
            )
    height, width = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
    return Listed(
        name=name,
        trunk=type(getattr(visual, "trunk", visual)).__name__,
        parameters=_count(parts),
        vision_parameters=_count(visual),
        image_size=(height, width),
        needs=needs,
    )


def with_fewer_layers(name: str, layers: int, folder: Path) -> Path:
    """Write a configuration that is the model's, but for the number of layers; widths and all else are kept."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    vision = config["vision_cfg"]
    if "timm_model_name" not in vision:
        old = vision.get("layers")
        vision["layers"] = [min(each, layers) for each in old] if isinstance(old, list) else layers
    for table in ("text_cfg", "multimodal_cfg"):
        if table in config and "hf_model_name" not in config[table]:
            config[table]["layers"] = layers
    path = folder / f"{name}-of-{layers}-layers.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@contextlib.contextmanager
def fewer_timm_layers(name: str, layers: int) -> Iterator[None]:
    """Inside, timm builds that model's trunk with so many layers, or as many in each of its stages."""
    trunk = open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name")
    if trunk is None:
        yield
        return
    stages = next((word for start, word in _STAGES.items() if trunk.startswith(start)), None)
    fewer: dict[str, Any] = (
        {"depth": layers} if stages is None else {stages: (layers,) * _STAGE_COUNTS.get(trunk, _STAGE_COUNT)}
    )
    timm = open_clip.timm_model.timm
    with mock.patch.object(timm, "create_model", functools.partial(timm.create_model, **fewer)):
        yield


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
