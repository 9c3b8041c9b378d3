"""What lies beside the weights of a checkpoint, and says what no comparison with eager PyTorch can show.

A hub's snapshot keeps a configuration with the weights: open_clip's `open_clip_config.json`, or transformers'
`config.json` and `preprocessor_config.json`. Its preprocessing is used; an activation or an architecture that is not
the model's is refused.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calipso_export.choices import SNAPSHOT
from calipso_runtime.errors import ModelError

_HF_MODEL, _HF_PREPROCESS = "config.json", "preprocessor_config.json"
_TOLD = ("mean", "std", "interpolation", "resize_mode", "fill_color")
# Pillow's numbers, which transformers writes.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
# transformers leaves out what is its default.
_HF_ACTIVATIONS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}
# Where weights of a part come from, and names of tokenizers: not the network's shape.
_NO_SHAPE = ("hf_", "timm_model_pretrained", "tokenizer_kwargs", "quick_gelu", "init_logit_scale", "init_logit_bias")
_MOST_SHOWN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """What a folder says of the weights in it; empty where it says nothing.

    Attributes:
        file: that says it, for messages.
        quick_gelu: whether they were trained with QuickGELU; None where it is not said.
        architecture: open_clip's model configuration.
        preprocess: of open_clip's settings those that are told.
        preprocess_file: that tells them.
    """

    file: str = ""
    quick_gelu: bool | None = None
    architecture: Mapping[str, Any] | None = None
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess_file: str = ""


def read_beside(checkpoint: Path) -> Beside:
    """Read what lies beside a checkpoint, a file or a folder.

    Raises:
        ModelError: a configuration is there, and is none.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if (folder / SNAPSHOT).is_file():
        document = _read(folder / SNAPSHOT)
        try:
            architecture, told = document["model_cfg"], document.get("preprocess_cfg") or {}
            return Beside(
                file=SNAPSHOT,
                quick_gelu=bool(architecture.get("quick_gelu", False)),
                architecture=architecture,
                preprocess={key: _plain(told[key]) for key in _TOLD if told.get(key) is not None},
                preprocess_file=SNAPSHOT,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _not_a_configuration(folder / SNAPSHOT, error) from error
    if (folder / _HF_MODEL).is_file():
        return _of_transformers(folder)
    return Beside()


def check_architecture(beside: Beside, architecture: Mapping[str, Any], name: str) -> None:
    """Refuse weights whose own configuration describes another network than the model's.

    Raises:
        ModelError: it does, and in what.
    """
    if beside.architecture is None:
        return
    theirs, ours = _flat(beside.architecture), _flat(architecture)
    differing = sorted(key for key in theirs.keys() & ours.keys() if _plain(theirs[key]) != _plain(ours[key]))
    if not differing:
        return
    shown = "; ".join(f"{key}: {ours[key]} in {name}, {theirs[key]} there" for key in differing[:_MOST_SHOWN])
    more = f", and {len(differing) - _MOST_SHOWN} more" if len(differing) > _MOST_SHOWN else ""
    message = (
        f"{beside.file} beside the weights describes another network than {name}: {shown}{more}. Give that file "
        "with --model"
    )
    raise ModelError(message)


def _of_transformers(folder: Path) -> Beside:
    try:
        document = _read(folder / _HF_MODEL)
    except ModelError:
        # Many programs write a config.json, and not all of them JSON.
        return Beside()
    usual = _HF_ACTIVATIONS.get(str(document.get("model_type")))
    if usual is None:
        return Beside()
    try:
        towers = [document.get(f"{tower}_config") or {} for tower in ("vision", "text")]
        told = {tower.get("hidden_act", usual) for tower in towers}
        activation = told.pop() if len(told) == 1 else None
    except (TypeError, AttributeError) as error:
        raise _not_a_configuration(folder / _HF_MODEL, error) from error
    found: dict[str, Any] = {}
    if (folder / _HF_PREPROCESS).is_file():
        pictures = _read(folder / _HF_PREPROCESS)
        values = {
            "mean": pictures.get("image_mean"),
            "std": pictures.get("image_std"),
            "interpolation": _RESAMPLE.get(pictures.get("resample", -1)),
            "resize_mode": "shortest" if pictures.get("do_center_crop") else "squash",
        }
        found = {key: _plain(value) for key, value in values.items() if value is not None}
    return Beside(
        file=_HF_MODEL,
        quick_gelu=None if activation is None else activation == "quick_gelu",
        preprocess=found,
        preprocess_file=_HF_PREPROCESS,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _not_a_configuration(path, error) from error
    if not isinstance(document, dict):
        raise _not_a_configuration(path, TypeError(f"it is a {type(document).__name__}"))
    return document


def _not_a_configuration(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}, which lies beside the checkpoint, is no model configuration: {error!r}")


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their path, `vision_cfg.layers`, without those that say nothing of the network."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if key.startswith(_NO_SHAPE):
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _plain(value: Any) -> Any:
    """Lists and tuples alike."""
    return tuple(value) if isinstance(value, (list, tuple)) else value
