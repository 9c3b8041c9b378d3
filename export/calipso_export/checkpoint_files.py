"""Reads the files that people keep weights in: one file, shards with an index, or a folder; wrapped, and with prefixes.

Nothing is guessed in silence: where a file holds the weights of two models, both are named and none is taken.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias, cast

import torch
from safetensors.torch import load_file

from calipso_runtime.errors import ModelError

State: TypeAlias = dict[str, torch.Tensor]

# What a folder's weights are called, first come first taken: open_clip's names, then Hugging Face's.
_IN_FOLDERS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"
_ADAPTER = "adapter_config.json"
# Under what training scripts keep a state_dict beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "weights", "params")
# Copies of the weights that a file may hold beside them: which is meant only its owner knows.
_COPIES = ("ema", "model_ema", "ema_state_dict", "ema_model", "averaged_model", "teacher")
_MOST_LAYERS = 4
_LORA = ("lora_A.", "lora_B.", ".lora_down.", ".lora_up.", "lora_embedding_")


def weights_file(checkpoint: Path) -> Path:
    """The file of the weights: the path itself, or what a folder holds.

    Raises:
        ModelError: it does not exist, holds no weights, or only an adapter's.
    """
    if checkpoint.is_file():
        return checkpoint
    if not checkpoint.is_dir():
        message = f"the checkpoint {checkpoint} does not exist"
        raise ModelError(message)
    if (checkpoint / _ADAPTER).is_file():
        raise ModelError(_adapter_message(checkpoint))
    for name in _IN_FOLDERS:
        if (checkpoint / name).is_file():
            return checkpoint / name
    message = f"the folder {checkpoint} holds no weights: expected one of {', '.join(_IN_FOLDERS)}"
    raise ModelError(message)


def read_state(path: Path) -> object:
    """What is in a file, out of the wrappers that training scripts put around a state_dict.

    Raises:
        ModelError: it runs code, lacks a shard, or holds two models.
        Exception: of the libraries, where it is damaged.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    if _is_torchscript(path):
        message = (
            f"{path} is a TorchScript archive, which runs code when it is loaded. Save its state_dict as "
            "safetensors, or use --pretrained"
        )
        raise ModelError(message)
    content: object = torch.load(path, map_location="cpu", weights_only=True)
    for _ in range(_MOST_LAYERS):
        if not isinstance(content, dict):
            break
        inner = [name for name in _WRAPPERS if _holds_tensors(content.get(name))]
        copies = [name for name in _COPIES if _holds_tensors(content.get(name))]
        if len(inner) + len(copies) > 1:
            message = (
                f"{path} holds several sets of weights: {', '.join([*inner, *copies])}. Save the one that you mean as "
                "a file of its own"
            )
            raise ModelError(message)
        if not inner:
            break
        content = content[inner[0]]
    return content


def without_prefix(state: Mapping[str, torch.Tensor], wanted: Iterable[str], path: Path) -> tuple[State, list[str]]:
    """The weights by the model's own names, and the names of what lies outside of the model.

    `module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of Lightning, nested or not: whatever stands
    before the model's own names.

    Args:
        state: as the file has it.
        wanted: names of the model.
        path: of the file, for messages.

    Raises:
        ModelError: the model is in it twice, or it is an adapter's.
    """
    if any(part in name for name in state for part in _LORA):
        raise ModelError(_adapter_message(path))
    own = set(wanted)
    found: dict[str, int] = {}
    for name in state:
        place = -1
        while True:
            if name[place + 1 :] in own:
                found[name[: place + 1]] = found.get(name[: place + 1], 0) + 1
                break
            place = name.find(".", place + 1)
            if place < 0:
                break
    # A name of the text tower may end like one of the vision tower: the model's is the prefix of most of its names.
    likely = [prefix for prefix, count in found.items() if 2 * count > len(own)]
    if len(likely) > 1:
        message = (
            f"{path} holds the model {len(likely)} times, under {', '.join(map(repr, sorted(likely)))}: save the one "
            "that you mean as a file of its own"
        )
        raise ModelError(message)
    prefix = likely[0] if likely else ""
    if not prefix:
        return dict(state), []
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inside, sorted(name for name in state if not name.startswith(prefix))


def _read_shards(index: Path) -> State:
    places = _weight_map(index)
    state: State = {}
    for name in sorted(set(places.values())):
        # A name of a file beside the index, never a path elsewhere.
        shard = index.parent / Path(name).name
        if not shard.is_file():
            message = f"{index} names the shard {name}, which is not beside it"
            raise ModelError(message)
        content = load_file(shard) if shard.suffix == ".safetensors" else _tensors_of(shard)
        state |= content
    missing = sorted(set(places) - set(state))
    if missing:
        message = f"{len(missing)} tensors that {index} names are in none of its shards: {', '.join(missing[:4])}"
        raise ModelError(message)
    return state


def _weight_map(index: Path) -> dict[str, str]:
    """Return by tensor the file that holds it."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        places = None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        message = f"{index} is not an index of shards: expected JSON with a weight_map from tensors to file names"
        raise ModelError(message)
    return places


def _tensors_of(shard: Path) -> State:
    return cast("State", torch.load(shard, map_location="cpu", weights_only=True))


def _holds_tensors(value: object) -> bool:
    """Whether it is a dictionary with tensors in it, or in a dictionary of it."""
    if not isinstance(value, dict):
        return False
    return any(isinstance(each, torch.Tensor) or _holds_tensors(each) for each in value.values())


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("constants.pkl") for entry in archive.namelist())


def _adapter_message(path: Path) -> str:
    return (
        f"{path} is an adapter (LoRA), not a model. Merge it into the model first, and give what that saves: "
        "PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(FOLDER)"
    )
