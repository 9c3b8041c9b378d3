"""Reads a checkpoint into a model, after checking that it is that model's, whole, and nothing but tensors."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import nn

from calipso_export.checkpoint_files import read_state, weights_file, without_prefix
from calipso_export.choices import GELU, QUICK_GELU
from calipso_export.clip import open_clip
from calipso_export.files import PARSING_ERRORS
from calipso_export.hf_weights import is_hugging_face, to_open_clip
from calipso_runtime.errors import ModelError

_MOST_NAMES_SHOWN = 4
# What older files have beside the weights, and open_clip leaves out.
_NO_WEIGHTS = {
    "attn_mask",
    "context_length",
    "input_resolution",
    "text.transformer.embeddings.position_ids",
    "vocab_size",
}
_ACTIVATIONS = {True: "QuickGELU", False: "GELU"}
_QUICK = "-quickgelu"
# exp(logit_scale): CLIP begins with 14.3 and is held at 100; SigLIP's are near 110.
_SCALES = 1.0, 1000.0
_KNOWN_NAMES = {
    "transformers' BLIP": "text_decoder.bert",
    "DINOv2": "register_tokens",
    "a ViT of transformers": "encoder.layer.0.attention.attention.query",
    "a vision tower of timm alone": "blocks.0.attn.qkv.weight",
    "a classifier": "classifier.weight",
}
_READ_ERRORS = (SafetensorError, pickle.UnpicklingError, AssertionError, *PARSING_ERRORS)


def activation_message(name: str, weights: str, *, model: bool) -> str:
    """Say that the weights were trained with the activation that the model does not use, and what to use.

    Args:
        name: the model.
        weights: what says so.
        model: whether the model uses QuickGELU.
    """
    activation = _ACTIVATIONS
    other = f"{name}-quickgelu" if not model else name.removesuffix("-quickgelu")
    hint = (
        f"use --model {other}" if open_clip.get_model_config(other) else "use the configuration they were trained with"
    )
    return (
        f"the model {name} uses {activation[model]}, but {weights} says that the weights were trained with "
        f"{activation[not model]}: the answers would be quietly wrong; {hint}"
    )


def check_activation(name: str, given: str | None, *, quick_gelu: bool) -> None:
    """Ask for the activation of a checkpoint where its model is published with both, and refuse the wrong one.

    Args:
        name: the model.
        given: what was said of it: of `choices.ACTIVATIONS`.
        quick_gelu: whether the model uses QuickGELU.

    Raises:
        ModelError: nothing is said, or the model uses the other one.
    """
    if given is not None:
        if (given == QUICK_GELU) != quick_gelu:
            raise ModelError(activation_message(name, "--activation", model=quick_gelu))
        return
    tags = {
        tag: bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", quick_gelu))
        for tag in open_clip.list_pretrained_tags_by_model(name)
    }
    others = [tag for tag, quick in tags.items() if quick != quick_gelu]
    # A name that says it is no guess.
    if not others or name.endswith(_QUICK):
        return
    same = [tag for tag, quick in tags.items() if quick == quick_gelu]
    message = (
        f"{name} is published with two activations: {_ACTIVATIONS[quick_gelu]} ({some(same) or 'no tag'}), and "
        f"{_ACTIVATIONS[not quick_gelu]} ({some(others)}), and nothing beside the checkpoint says with which one it "
        f"was trained. With the wrong one the answers are quietly wrong. Give --activation {GELU}, or --model "
        f"{name}{_QUICK}"
    )
    raise ModelError(message)


def part_of_vision(name: str) -> bool:
    """Whether a tensor of an open_clip model is needed where text features come from a file."""
    return name.startswith("visual.") or name in ("logit_scale", "logit_bias")


def load_checkpoint(module: nn.Module, checkpoint: Path, name: str, *, vision_only: bool = False) -> list[str]:
    """Load weights into an open_clip model: see `checkpoint_files` for what they may lie in.

    Args:
        module: the model.
        checkpoint: a file, or a folder of them.
        name: the model's, for messages.
        vision_only: leave the text tower as it is, and its tensors in the file.

    Returns:
        Names of tensors that are not the model's, beside the whole model: a head of the training, a loss.

    Raises:
        ModelError: it does not exist, is damaged, executable, of another architecture, or not finite.
    """
    path = weights_file(checkpoint)
    try:
        content = read_state(path)
    except _READ_ERRORS as error:
        message = (
            f"the checkpoint {path} cannot be read: it is truncated, or neither safetensors nor a torch file "
            f"that loads with weights_only=True ({first_line(error)})"
        )
        raise ModelError(message) from error
    state, outside = _check_tensors(module, content, path, name, vision_only=vision_only)
    _load(module, state)
    check_scale(module, path)
    return outside


def check_scale(module: nn.Module, path: Path) -> None:
    """Refuse a logit scale that no CLIP has: it multiplies every logit, and no comparison with eager would show it.

    Raises:
        ModelError: exp(logit_scale) is outside of what any CLIP has.
    """
    told = float(cast("torch.Tensor", module.logit_scale))
    low, high = _SCALES
    if math.log(low) <= told <= math.log(high):
        return
    hint = (
        f". It looks like the scale itself, where its logarithm is expected, {math.log(told):.4f}"
        if low < told <= high
        else ""
    )
    message = (
        f"logit_scale of {path} is {told:g}, its logarithm: logits would be cosines times exp({told:g}), where CLIP "
        f"models have {low:g} to {high:g}, trained ones about 100{hint}"
    )
    raise ModelError(message)


def _load(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    # As open_clip does: a scale may be a number or one of a list, and a file without a bias means 0.
    own = module.state_dict()
    state = {key: value.reshape(own[key].shape) for key, value in state.items() if key in own}
    if "logit_bias" in own:
        state = {"logit_bias": torch.zeros_like(own["logit_bias"]), **state}
    module.load_state_dict(state, strict=False)


def _check_tensors(
    module: nn.Module, state: object, checkpoint: Path, name: str, *, vision_only: bool
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Names and shapes must be the model's: open_clip would quietly resize a positional embedding."""
    named = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    )
    if not named or not state:
        message = f"the checkpoint {checkpoint} holds no state_dict of tensors"
        raise ModelError(message)
    wanted = module.state_dict()
    found, outside = _own_names(module, cast("dict[str, torch.Tensor]", state), checkpoint)
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
        f"{len(names)} tensors {what} ({some(names)})"
        for what, names in (("missing", missing), ("of another shape", shapes), ("unknown to it", extra))
        if names
    ]
    broken = [key for key, value in found.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        message = f"the checkpoint {checkpoint} has weights that are NaN or infinite, in {some(broken)}: it is damaged"
        raise ModelError(message)
    if problems:
        message = f"the checkpoint {checkpoint} is of another architecture than {name}: {'; '.join(problems)}"
        raise ModelError(message + _looks_like(found))
    return found, outside


def _own_names(
    module: nn.Module, state: dict[str, torch.Tensor], path: Path
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights by open_clip's names, and the names of those that lie outside of the model."""
    if is_hugging_face(state):
        return to_open_clip(state), []
    own, outside = without_prefix(state, module.state_dict(), path)
    return cast("dict[str, torch.Tensor]", open_clip.convert.convert_state_dict(module, own)), outside


def _looks_like(state: Mapping[str, torch.Tensor]) -> str:
    """What the names remind of, as the end of a message."""
    for what, mark in _KNOWN_NAMES.items():
        if any(mark in name for name in state):
            return f". Its names are those of {what}"
    return ""


def some(names: list[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:_MOST_NAMES_SHOWN]) + (", ..." if len(names) > _MOST_NAMES_SHOWN else "")


def first_line(error: Exception) -> str:
    """The beginning of an error of a library that explains itself at length."""
    return (str(error).splitlines() or [type(error).__name__])[0]
