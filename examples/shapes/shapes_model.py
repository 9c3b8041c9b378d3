"""Builds, saves and loads the small CLIP models of the shapes example as stock open_clip models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calipso_export.torchvision_ops import ensure_torchvision_imports

ensure_torchvision_imports()  # before anything imports open_clip

import open_clip  # noqa: E402
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from cache import CONTEXT_LENGTH, IMAGE_SIDE_PX  # noqa: E402

VOCABULARY = 49408
TEXT_WIDTH = 48
"""Narrow, because the stock vocabulary's embedding of VOCABULARY x TEXT_WIDTH is half of the file."""
EMBED_DIM = 96
_VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": IMAGE_SIDE_PX, "layers": 6, "width": 128, "patch_size": 8, "head_width": 32},
    "rn": {"image_size": IMAGE_SIDE_PX, "layers": [1, 1, 1, 1], "width": 20, "head_width": 32},
}
ARCHITECTURES = tuple(_VISION)
_WORD_ROWS = "token_embedding.weight"


def configuration(architecture: str) -> dict[str, Any]:
    """The open_clip model config of an architecture."""
    return {
        "embed_dim": EMBED_DIM,
        "quick_gelu": False,
        "vision_cfg": _VISION[architecture],
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": VOCABULARY,
            "width": TEXT_WIDTH,
            "heads": 3,
            "layers": 3,
        },
    }


def write_configuration(folder: Path, architecture: str) -> Path:
    """Write FOLDER/<its name>.json, whose stem open_clip takes for the model's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{folder.name}.json"
    path.write_text(json.dumps(configuration(architecture), indent=2) + "\n", encoding="utf-8")
    return path


def build(folder: Path) -> torch.nn.Module:
    """The untrained model that FOLDER's config describes."""
    open_clip.add_model_config(folder / f"{folder.name}.json")
    model: torch.nn.Module = open_clip.create_model(folder.name, pretrained=None)
    return model


def load(folder: Path) -> tuple[torch.nn.Module, Any, Any]:
    """The trained model of a folder with its image transform and its tokenizer, all made by open_clip.

    Raises:
        FileNotFoundError: If the folder lacks the config or the weights.
    """
    config, weights = (folder / f"{folder.name}.{suffix}" for suffix in ("json", "safetensors"))
    for path in (config, weights):
        if not path.is_file():
            msg = f"{path} is missing: expected the folder that train.py wrote. Run train.py first."
            raise FileNotFoundError(msg)
    open_clip.add_model_config(config)
    model, _, transform = open_clip.create_model_and_transforms(folder.name, pretrained=str(weights))
    return model.eval(), transform, open_clip.get_tokenizer(folder.name)


def save(model: torch.nn.Module, path: Path, kept_tokens: NDArray[np.int64]) -> None:
    """Write the weights as fp16; the other tokens' rows are zeroed, so that the file compresses well."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    unused = torch.ones(VOCABULARY, dtype=torch.bool)
    unused[torch.from_numpy(kept_tokens)] = False
    state[_WORD_ROWS][unused] = 0
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    partial = path.with_name(path.name + ".partial")
    save_file({name: value.contiguous() for name, value in half.items()}, partial)
    partial.replace(path)


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels of n x side x side x 3 as the model's input, as open_clip's transform does it."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (images - mean) / std
