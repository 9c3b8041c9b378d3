"""How a model's pictures are prepared, where no pretrained tag says it: open_clip would take OpenAI's way for all.

SigLIP, PE-Core, CLIPA and MobileCLIP were trained otherwise: a checkpoint of them would be fed wrong pictures without
a word. Their published weights say how: where all of a model agree, a checkpoint of it is taken to be like them.
"""

import warnings
from typing import Any, cast

from torch import nn

from calipso_export.beside import Beside
from calipso_export.clip import open_clip
from calipso_export.config import ExportConfig
from calipso_runtime.errors import CalipsoWarning, ModelError

# What open_clip's tags tell of it.
_TOLD = ("mean", "std", "interpolation", "resize_mode")
_STATISTICS = ("mean", "std")
_DEFAULT = "open_clip's default"


def settings_of(name: str, config: ExportConfig, beside: Beside | None = None) -> tuple[dict[str, Any], str]:
    """What open_clip is told of the preprocessing of a model, and where it comes from, in words.

    Args:
        name: the model.
        config: its own settings win over all others.
        beside: what lies beside the weights, which wins over published weights.

    Raises:
        ModelError: the model's published weights disagree, and it is not said which of them a checkpoint is like.
    """
    given = dict(config.preprocess)
    if config.pretrained is not None:
        return given, _with_given(f"the tag {config.pretrained}", given)
    told = {} if beside is None else dict(beside.preprocess)
    if beside is not None and set(_TOLD) <= {*told, *given}:
        return {**told, **given}, _with_given(f"{beside.preprocess_file} beside the weights", given)
    published = _published(name)
    if not published and not told:
        return given, _with_given(_DEFAULT, given)
    agreed = {key: next(iter(ways)) for key, ways in published.items() if len(ways) == 1}
    open_questions = [key for key in published if key not in agreed and key not in given and key not in told]
    if open_questions and config.checkpoint is not None:
        raise ModelError(_disagreement(name, {key: published[key] for key in open_questions}))
    found = "all published weights of the model" if not open_questions else _DEFAULT
    if told and beside is not None:
        found = f"{beside.preprocess_file} beside the weights ({', '.join(sorted(told))}), else {found}"
    return {**agreed, **told, **given}, _with_given(found, given)


def warn_of_doubt(visual: nn.Module, config: ExportConfig, source: str) -> None:
    """Warn where nothing says how a checkpoint's pictures were prepared, and timm prepares its trunk's otherwise."""
    is_given = any(key in config.preprocess for key in _STATISTICS)
    if config.checkpoint is None or is_given or not source.startswith(_DEFAULT):
        return
    usual = getattr(getattr(visual, "trunk", None), "pretrained_cfg", None) or {}
    taken = cast("Any", visual).preprocess_cfg
    differing = [key for key in _STATISTICS if key in usual and tuple(usual[key]) != tuple(taken[key])]
    if differing:
        message = (
            f"nothing says how the pictures of {config.checkpoint.name} were prepared. Taken: "
            f"{_listed({key: taken[key] for key in differing})}, which is {_DEFAULT}; timm's for this trunk: "
            f"{_listed({key: usual[key] for key in differing})}. Give both under [preprocess] in a --config file"
        )
        warnings.warn(message, CalipsoWarning, stacklevel=4)


def _published(name: str) -> dict[str, dict[Any, list[str]]]:
    """For each setting, its values in the model's published weights, and the tags of each."""
    found: dict[str, dict[Any, list[str]]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(name):
        told = open_clip.get_pretrained_cfg(name, tag)
        for key in _TOLD:
            value = told[key]
            found.setdefault(key, {}).setdefault(tuple(value) if isinstance(value, list) else value, []).append(tag)
    return found


def _disagreement(name: str, open_questions: dict[str, dict[Any, list[str]]]) -> str:
    ways = "; ".join(
        f"{key}: " + ", ".join(f"{value} ({', '.join(tags)})" for value, tags in values.items())
        for key, values in open_questions.items()
    )
    return (
        f"the published weights of {name} were trained on pictures prepared in different ways: {ways}. Say which way "
        f"this checkpoint takes: {', '.join(open_questions)} under [preprocess] in a --config file"
    )


def _with_given(source: str, given: dict[str, Any]) -> str:
    return f"{source}; given: {', '.join(sorted(given))}" if given else source


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {tuple(value)}" for key, value in values.items())
