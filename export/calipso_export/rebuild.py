"""Rebuilds what a bundle was made of: the eager model and its heads, from the manifest and the graph.

The example photos may be gone by then: a few-shot head is read back from the graph and unfolded.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import external_data_helper, numpy_helper

from calipso_export.choices import GELU, OPEN_OUTPUTS, QUICK_GELU
from calipso_export.config import ExportConfig, snapshot_of
from calipso_export.front_ends.points import PointsFrontEnd
from calipso_export.heads import attribute, few_shot_class
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.calip_fs import CARRY, MATCH, unfolded
from calipso_export.heads.few_shot import FewShotHead
from calipso_export.heads.tip_adapter import TipAdapter
from calipso_export.learned_text import digest_of, read_text_weights
from calipso_export.models import LoadedModel, load_model
from calipso_export.probes import Probes, probe
from calipso_export.progress import Progress
from calipso_export.reference import HeadTensors
from calipso_export.templates import Prompts
from calipso_export.text_weights import text_features
from calipso_runtime.confidence import Confidence
from calipso_runtime.errors import ModelError
from calipso_runtime.graph_file import MODEL_FILE
from calipso_runtime.head.classes import Head
from calipso_runtime.head.file import is_input, read_head
from calipso_runtime.manifest import Manifest

_TEXT_WEIGHT, _CALIP = "zero_shot.weight", "calip."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The eager side of a bundle, and the settings that its graph is traced with.

    Attributes:
        config: the settings.
        model: the model.
        prompts: what its text features are made of.
        heads: what its heads are made of.
        given: the head, where it is an input of the graph.
        probes: what the logits are over, where the bundle takes any labels.
    """

    config: ExportConfig
    model: LoadedModel
    prompts: Prompts
    heads: HeadTensors
    given: Head | None = None
    probes: Probes | None = None


def rebuild(
    bundle: Path,
    manifest: Manifest,
    *,
    checkpoint: Path | None,
    model: str | None,
    progress: Progress,
    text_weights: Path | None = None,
    tokenizer: Path | None = None,
    text_model: Path | None = None,
    encode_text: bool = True,
) -> Rebuilt:
    """Load the model that a bundle was made from, and its heads.

    Args:
        bundle: the bundle, or a bare `.onnx`.
        manifest: what it says of itself.
        checkpoint: the weights, needed where the bundle was exported from a file.
        model: the model's configuration file, needed where the bundle was exported from one.
        progress: told about long work.
        text_weights: the file that the text features came from, where they came from one.
        tokenizer: folder of a Hugging Face tokenizer, where the bundle was exported with one.
        text_model: folder of a Hugging Face text model, likewise.
        encode_text: encode the prompts anew; otherwise the text features are read back from the graph,
            which is enough to time them, and proves nothing about them.

    Raises:
        ModelError: the weights given are not those that the bundle was made from.
        CalipsoError: whatever loading the model raises.
    """
    config = _config(manifest, bundle, checkpoint, model, tokenizer=tokenizer, text_model=text_model)
    loaded = load_model(config, encodes_text=encode_text and text_weights is None)
    if loaded.weights["sha256"] != manifest.model["weights"]["sha256"]:
        message = (
            f"these weights are not those that {bundle} was made from: sha256 {loaded.weights['sha256'][:12]}... "
            f"instead of {manifest.model['weights']['sha256'][:12]}..."
        )
        raise ModelError(message)
    prompts = _prompts(manifest)
    path = bundle / MODEL_FILE if bundle.is_dir() else bundle
    text = None
    if text_weights is not None:
        text = _learned(text_weights, manifest, bundle)
    elif encode_text and prompts.text_weights is None and not manifest.takes_labels:
        text = text_features(loaded, manifest.labels, prompts, progress)
    given = read_head(path, manifest) if is_input(manifest) else None
    probes = probe(loaded, manifest.labels, prompts) if manifest.takes_labels else None
    if probes is not None:
        heads = HeadTensors(text=probes.features)
    elif given is not None:
        heads = _given_heads(given, text, manifest)
    else:
        arrays = _initializers(path, (attribute(manifest.few_shot["name"]) + ".", _CALIP))
        if text is None:
            text = torch.from_numpy(_found(arrays, _TEXT_WEIGHT, path)).T.contiguous() / loaded.scale
        heads = _heads(manifest, text, arrays, path)
    return Rebuilt(config=config, model=loaded, prompts=prompts, heads=heads, given=given, probes=probes)


def _config(
    manifest: Manifest, bundle: Path, checkpoint: Path | None, model: str | None, **folders: Any
) -> ExportConfig:
    weights = manifest.model["weights"]
    source: dict[str, Any] = {}
    if checkpoint is None and model is not None:
        # A snapshot has its weights beside it.
        checkpoint = snapshot_of(model)
    if checkpoint is not None:
        source["checkpoint"] = checkpoint
    elif weights["source"] == "pretrained":
        source["pretrained"] = weights["tag"]
    elif weights["source"] == "random":
        source["random_init"] = weights["seed"]
    else:
        message = f"{bundle} was made from the checkpoint {weights['file']}: give it with --checkpoint FILE"
        raise ModelError(message)
    config_file = manifest.model["config"]
    # What the bundle was made with is no question any more.
    source["activation"] = QUICK_GELU if manifest.model["quick_gelu"] else GELU
    if config_file is not None and model is None:
        message = f"{bundle} was made from the model configuration {config_file}: give it with --model"
        raise ModelError(message)
    preprocess = manifest.as_json()["preprocess"]
    return ExportConfig(
        model=model or manifest.model["name"],
        classes=manifest.labels,
        output=bundle,
        opset=manifest.graph["opset"],
        head_mode=manifest.head["kind"],
        outputs=OPEN_OUTPUTS if manifest.takes_labels else tuple(manifest.graph["outputs"]),
        preprocess={name: value for name, value in preprocess.items() if name != "size"},
        text_weights=Path(manifest.prompts["source"]) if "text_weights" in manifest.prompts else None,
        **folders,
        **_input(manifest),
        **source,
    )


def _input(manifest: Manifest) -> dict[str, Any]:
    """The settings of the front end."""
    if (taken := manifest.pixels) is not None:
        return {
            "pixels": True,
            "pixels_size": None if taken.size is None else "x".join(map(str, taken.size)),
            "channel_order": taken.channels,
            "resize_form": taken.resize,
        }
    if manifest.input_name != PointsFrontEnd.name:
        return {}
    return {
        "input": manifest.input_name,
        "points": manifest.input["points"],
        "views": len(manifest.input["views"]),
        "view_weights": ",".join(map(str, manifest.input["view_weights"])),
    }


def _prompts(manifest: Manifest) -> Prompts:
    document = manifest.prompts
    per_class = document["per_class"]
    return Prompts(
        source=document["source"],
        templates=tuple(document["templates"]),
        per_class=None if per_class is None else {name: tuple(own) for name, own in per_class.items()},
        text_weights=document.get("text_weights"),
    )


def _learned(path: Path, manifest: Manifest, bundle: Path) -> torch.Tensor:
    """The text features of a file, if it is the one that the bundle was made from."""
    promised, found = manifest.prompts.get("text_weights"), digest_of(path)
    if promised is None:
        message = f"{bundle} was made from prompts ({manifest.prompts['source']}): leave out --text-weights"
        raise ModelError(message)
    if found != promised:
        message = (
            f"{path} is not the file that the text features of {bundle} came from: sha256 {found[:12]}... instead of "
            f"{promised[:12]}..."
        )
        raise ModelError(message)
    return read_text_weights(path, manifest.labels, width=manifest.model["embed_dim"])


def _heads(
    manifest: Manifest, text: torch.Tensor, arrays: dict[str, npt.NDArray[np.float32]], path: Path
) -> HeadTensors:
    calip = manifest.head["calip"]
    return HeadTensors(
        text=text,
        few_shot=_few_shot(manifest, arrays, path),
        calip=CalipParameters(b2=calip["b2"], b3=calip["b3"]) if calip["used"] else None,
        layers=_layers(manifest, arrays, path),
        centred=manifest.head.get("centred", False),
        temperature=Confidence.from_json(manifest.confidence).temperature,
    )


def _given_heads(head: Head, text: torch.Tensor | None, manifest: Manifest) -> HeadTensors:
    """Of a head that is an input: what the bundle was exported with."""
    cache = None
    if head.alpha > 0:
        keys, owners = torch.from_numpy(head.keys), torch.from_numpy(head.owners)
        cache = TipAdapter(keys=keys, labels=owners, alpha=head.alpha, beta=head.beta)
    return HeadTensors(
        text=torch.from_numpy(head.text) if text is None else text,
        few_shot=cache,
        temperature=Confidence.from_json(manifest.confidence).temperature,
    )


def _few_shot(manifest: Manifest, arrays: dict[str, npt.NDArray[np.float32]], path: Path) -> FewShotHead | None:
    record = manifest.few_shot
    if not record["used"]:
        return None
    prefix = attribute(record["name"]) + "."
    weights = {
        name.removeprefix(prefix): torch.from_numpy(array) for name, array in arrays.items() if name.startswith(prefix)
    }
    try:
        return few_shot_class(record["name"]).unfold(weights, record, manifest.graph)
    except KeyError as error:
        message = f"{path} holds no {prefix}{error.args[0]}, though its manifest promises it"
        raise ModelError(message) from error


def _layers(manifest: Manifest, arrays: dict[str, npt.NDArray[np.float32]], path: Path) -> torch.Tensor | None:
    """CALIP's learned layers, where it has any."""
    if not manifest.head.get("calip_fs", {"used": False})["used"]:
        return None
    match, carry = (torch.from_numpy(_found(arrays, _CALIP + name, path)) for name in (MATCH, CARRY))
    return unfolded(match, carry)


def _initializers(path: Path, prefixes: tuple[str, ...]) -> dict[str, npt.NDArray[np.float32]]:
    """Those of the heads that are read back, by name."""
    model = onnx.load(path, load_external_data=False)
    arrays = {}
    for tensor in model.graph.initializer:
        if tensor.name == _TEXT_WEIGHT or tensor.name.startswith(prefixes):
            if external_data_helper.uses_external_data(tensor):
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            arrays[tensor.name] = numpy_helper.to_array(tensor).copy()
    return arrays


def _found(arrays: dict[str, npt.NDArray[np.float32]], name: str, path: Path) -> npt.NDArray[np.float32]:
    if name not in arrays:
        message = f"{path} holds no {name!r}, though its manifest promises it"
        raise ModelError(message)
    return arrays[name]
