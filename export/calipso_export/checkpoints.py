"""Reads a checkpoint into a model, after checking that it is that model's, whole, and nothing but tensors."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from calipso_export.clip import open_clip
from calipso_export.files import PARSING_ERRORS
from calipso_runtime.errors import ModelError

_MOST_NAMES_SHOWN = 4
# What older files have beside the weights, and open_clip leaves out.
_NO_WEIGHTS = {"attn_mask", "text.transformer.embeddings.position_ids"}
_READ_ERRORS = (SafetensorError, pickle.UnpicklingError, AssertionError, *PARSING_ERRORS)


def check_activation(checkpoint: Path, name: str, *, quick_gelu: bool) -> None:
    """A hub's snapshot keeps the configuration beside the weights: its activation must be the model's."""
    settings = checkpoint.parent / "open_clip_config.json"
    if not settings.is_file():
        return
    try:
        theirs = json.loads(settings.read_text(encoding="utf-8"))["model_cfg"].get("quick_gelu", False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{settings}, which lies beside the checkpoint, is not an open_clip configuration: {error!r}"
        raise ModelError(message) from error
    if bool(theirs) != quick_gelu:
        raise ModelError(activation_message(name, f"{settings.name} beside {checkpoint.name}", model=quick_gelu))


def activation_message(name: str, weights: str, *, model: bool) -> str:
    """Say that the weights were trained with the activation that the model does not use, and what to use.

    Args:
        name: the model.
        weights: what says so.
        model: whether the model uses QuickGELU.
    """
    activation = {True: "QuickGELU", False: "GELU"}
    other = f"{name}-quickgelu" if not model else name.removesuffix("-quickgelu")
    hint = (
        f"use --model {other}" if open_clip.get_model_config(other) else "use the configuration they were trained with"
    )
    return (
        f"the model {name} uses {activation[model]}, but {weights} says that the weights were trained with "
        f"{activation[not model]}: the answers would be quietly wrong; {hint}"
    )


def part_of_vision(name: str) -> bool:
    """Whether a tensor of an open_clip model is needed where text features come from a file."""
    return name.startswith("visual.") or name in ("logit_scale", "logit_bias")


def load_checkpoint(module: nn.Module, checkpoint: Path, name: str, *, vision_only: bool = False) -> None:
    """Load a `.safetensors` file, or a torch file of tensors only, into an open_clip model.

    Args:
        module: the model.
        checkpoint: the file.
        name: the model's, for messages.
        vision_only: leave the text tower as it is, and its tensors in the file.

    Raises:
        ModelError: it does not exist, is damaged, executable, of another architecture, or not finite.
    """
    if not checkpoint.is_file():
        message = f"the checkpoint {checkpoint} does not exist"
        raise ModelError(message)
    try:
        if _is_torchscript(checkpoint):
            message = (
                f"{checkpoint} is a TorchScript archive, which runs code when it is loaded. Save its state_dict as "
                "safetensors, or use --pretrained"
            )
            raise ModelError(message)
        state = _read_state(checkpoint)
    except _READ_ERRORS as error:
        message = (
            f"the checkpoint {checkpoint} cannot be read: it is truncated, or neither safetensors nor a torch file "
            f"that loads with weights_only=True ({first_line(error)})"
        )
        raise ModelError(message) from error
    state = _check_tensors(module, state, checkpoint, name, vision_only=vision_only)
    if vision_only:
        _load_vision(module, state)
        return
    open_clip.load_checkpoint(module, str(checkpoint), strict=True, weights_only=True)


def _read_state(checkpoint: Path) -> object:
    """What is in the file, unpacked as open_clip does, which takes for granted that it is a state_dict."""
    if checkpoint.suffix == ".safetensors":
        return load_file(checkpoint)
    content: object = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if isinstance(content, dict) and str(next(iter(content), "")).startswith("module."):
        content = {str(name).removeprefix("module."): value for name, value in content.items()}
    return content


def _load_vision(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    # As open_clip does: a scale may be a number or one of a list, and a file without a bias means 0.
    own = module.state_dict()
    state = {key: value.reshape(own[key].shape) for key, value in state.items()}
    if "logit_bias" in own:
        state = {"logit_bias": torch.zeros_like(own["logit_bias"]), **state}
    module.load_state_dict(state, strict=False)


def _check_tensors(
    module: nn.Module, state: object, checkpoint: Path, name: str, *, vision_only: bool
) -> dict[str, torch.Tensor]:
    """Names and shapes must be the model's: open_clip would quietly resize a positional embedding."""
    named = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    )
    if not named or not state:
        message = f"the checkpoint {checkpoint} holds no state_dict of tensors"
        raise ModelError(message)
    found = open_clip.convert.convert_state_dict(module, dict(cast("dict[str, torch.Tensor]", state)))
    wanted = module.state_dict()
    if vision_only:
        found, wanted = ({key: each[key] for key in each if part_of_vision(key)} for each in (found, wanted))
    missing = sorted(set(wanted) - set(found) - {"logit_bias"})
    shapes = [
        f"{key} {list(found[key].shape)} instead of {list(value.shape)}"
        for key, value in wanted.items()
        if key in found and value.numel() > 1 and found[key].shape != value.shape
    ]
    extra = sorted(set(found) - set(wanted) - _NO_WEIGHTS)
    problems = [
        f"{len(names)} tensors {what} ({_some(names)})"
        for what, names in (("missing", missing), ("of another shape", shapes), ("unknown to it", extra))
        if names
    ]
    broken = [key for key, value in found.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        message = f"the checkpoint {checkpoint} has weights that are NaN or infinite, in {_some(broken)}: it is damaged"
        raise ModelError(message)
    if problems:
        message = f"the checkpoint {checkpoint} is of another architecture than {name}: {'; '.join(problems)}"
        raise ModelError(message)
    return cast("dict[str, torch.Tensor]", found)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES_SHOWN]) + (", ..." if len(names) > _MOST_NAMES_SHOWN else "")


def _is_torchscript(checkpoint: Path) -> bool:
    if not zipfile.is_zipfile(checkpoint):
        return False
    with zipfile.ZipFile(checkpoint) as archive:
        return any(entry.endswith("constants.pkl") for entry in archive.namelist())


def first_line(error: Exception) -> str:
    """The beginning of an error of a library that explains itself at length."""
    return (str(error).splitlines() or [type(error).__name__])[0]
