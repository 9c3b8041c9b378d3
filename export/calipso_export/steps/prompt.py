"""Prompt: class names and templates -> one text feature per class."""

import dataclasses
import warnings
from typing import ClassVar

import torch

from calipso_export.config import ExportConfig
from calipso_export.learned_text import read_text_weights
from calipso_export.models import LoadedModel
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.templates import Prompts
from calipso_export.text_weights import cut_classes, text_features
from calipso_runtime.errors import CalipsoWarning

# Features of length 1 that agree to this many decimals have a cosine above 1 - 1e-6.
_EQUAL_DECIMALS = 5
_MOST_SHOWN, _LONGEST = 5, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """float32 [K,D], L2-normalised, in the order of the classes."""

    values: torch.Tensor


class EncodePrompts:
    """Encode the prompts of every class, or read learned text features."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel, Prompts)
    ensures: ClassVar[tuple[type, ...]] = (TextFeatures,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, model = made[ExportConfig], made[LoadedModel]
        classes = config.classes
        if config.text_weights is None:
            _warn_of_cut_prompts(cut_classes(model, classes, made[Prompts]), len(classes))
            values = text_features(model, classes, made[Prompts], progress)
        else:
            values = read_text_weights(config.text_weights, classes, width=int(model.architecture["embed_dim"]))
        _warn_of_equal_classes(classes, values)
        made.add(TextFeatures(values=values))


def _warn_of_cut_prompts(cut: list[str], classes: int) -> None:
    if not cut:
        return
    names = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in cut[:_MOST_SHOWN]]
    shown = ", ".join(map(repr, names)) + (", ..." if len(cut) > _MOST_SHOWN else "")
    message = (
        f"prompts of {len(cut)} of {classes} classes are longer than the text tower's context, and their ends are cut "
        f"off: {shown}"
    )
    warnings.warn(message, CalipsoWarning, stacklevel=3)


def _warn_of_equal_classes(classes: tuple[str, ...], text: torch.Tensor) -> None:
    """Two classes with the same text can only be told apart by a cache: zero-shot always names the first."""
    first: dict[bytes, str] = {}
    pairs = []
    for name, feature in zip(classes, text, strict=True):
        other = first.setdefault(feature.numpy().round(_EQUAL_DECIMALS).tobytes(), name)
        if other != name:
            pairs.append(f"{other!r} and {name!r}")
    if pairs:
        message = (
            f"the text tower gives the same feature to {'; '.join(pairs)}: it does not know the words that differ, or "
            "its context cuts them off. Give these classes other names or prompts"
        )
        warnings.warn(message, CalipsoWarning, stacklevel=2)
