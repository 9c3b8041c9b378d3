"""Verifies a bundle again, later or elsewhere: its file against eager PyTorch rebuilt from its manifest.

The text features are encoded anew from the prompts that the manifest lists. The example photos may
be gone by then: the cache's keys are read back from the graph and unfolded.
"""

import json
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import external_data_helper, numpy_helper

from calipso_export.config import ExportConfig, Gates
from calipso_export.head_checks import check_text
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.tip_adapter import TipAdapterParameters, unfold
from calipso_export.models import LoadedModel, load_model
from calipso_export.parity import Parity
from calipso_export.photos import check_readable
from calipso_export.progress import Progress
from calipso_export.reference import EagerClassifier, HeadTensors
from calipso_export.steps.gather import Pictures, read_pictures
from calipso_export.steps.verify import verify
from calipso_export.templates import Prompts
from calipso_export.text_weights import text_features
from calipso_runtime import load
from calipso_runtime.bundle import MODEL_FILE, PARITY_FILE, Manifest
from calipso_runtime.errors import ModelError


def reverify(
    bundle: Path,
    *,
    data: Path | None,
    checkpoint: Path | None,
    model: str | None,
    backend: str,
    progress: Progress,
) -> Parity:
    """Compare a bundle, or a bare `.onnx`, with eager PyTorch.

    Args:
        bundle: what to verify.
        data: a folder of pictures; edge cases only where None.
        checkpoint: the weights, needed where the bundle was exported from a file.
        model: the model's configuration file, needed where the bundle was exported from one.
        backend: the engine to verify.
        progress: told about long work.

    Raises:
        ModelError: the weights given are not those that the bundle was made from.
        CalipsoError: whatever loading the bundle or the model raises.
    """
    with load(bundle, backend=backend) as classifier:
        manifest = classifier.manifest
        pictures = Pictures(pictures=(), source="none: edge cases only")
        if data is not None:
            pictures = read_pictures(data, manifest.labels)
            check_readable([str(each.content) for each in pictures.pictures], manifest.preprocess, progress)
        loaded = load_model(_config(manifest, bundle, checkpoint, model))
        if loaded.weights["sha256"] != manifest.model["weights"]["sha256"]:
            message = (
                f"these weights are not those that {bundle} was made from: sha256 {loaded.weights['sha256'][:12]}... "
                f"instead of {manifest.model['weights']['sha256'][:12]}..."
            )
            raise ModelError(message)
        prompts = _prompts(manifest)
        heads = _heads(manifest, loaded, prompts, bundle, progress)
        checks = {"text": check_text(loaded, manifest.labels, prompts, heads.text)}
        eager = EagerClassifier(loaded, heads, with_tokens="tokens" in classifier.outputs)
        return verify(classifier, eager, pictures, checks, gates=_gates(bundle), progress=progress)


def _config(manifest: Manifest, bundle: Path, checkpoint: Path | None, model: str | None) -> ExportConfig:
    weights = manifest.model["weights"]
    source: dict[str, Any] = {}
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
    if config_file is not None and model is None:
        message = f"{bundle} was made from the model configuration {config_file}: give it with --model FILE.json"
        raise ModelError(message)
    preprocess = manifest.as_json()["preprocess"]
    return ExportConfig(
        model=model or manifest.model["name"],
        classes=manifest.labels,
        output=bundle,
        preprocess={name: value for name, value in preprocess.items() if name != "size"},
        **source,
    )


def _prompts(manifest: Manifest) -> Prompts:
    document = manifest.prompts
    per_class = document["per_class"]
    return Prompts(
        source=document["source"],
        templates=tuple(document["templates"]),
        per_class=None if per_class is None else {name: tuple(own) for name, own in per_class.items()},
    )


def _heads(manifest: Manifest, model: LoadedModel, prompts: Prompts, bundle: Path, progress: Progress) -> HeadTensors:
    text = text_features(model, manifest.labels, prompts, progress)
    calip, cache = manifest.head["calip"], manifest.head["tip_adapter"]
    keys, labels, tip_adapter = None, None, None
    if cache["used"]:
        tip_adapter = TipAdapterParameters(alpha=cache["alpha"], beta=cache["beta"])
        keys, labels = _keys(bundle / MODEL_FILE if bundle.is_dir() else bundle, manifest, cache["beta"])
    return HeadTensors(
        text=text,
        keys=keys,
        labels=labels,
        calip=CalipParameters(b2=calip["b2"], b3=calip["b3"]) if calip["used"] else None,
        tip_adapter=tip_adapter,
    )


def _keys(path: Path, manifest: Manifest, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Unfold the cache from the graph's initializers: keys [M,D] without beta and padding; labels [M]."""
    model = onnx.load(path, load_external_data=False)
    arrays = {}
    for tensor in model.graph.initializer:
        if tensor.name.startswith("tip_adapter."):
            if external_data_helper.uses_external_data(tensor):
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            arrays[tensor.name] = numpy_helper.to_array(tensor)
    layout = manifest.graph["cache_layout"]
    try:
        blocks = [torch.from_numpy(arrays[f"tip_adapter.blocks.{index}.keys"].copy()) for index in range(len(layout))]
    except KeyError as error:
        message = f"{path} holds no {error}, though its manifest lists a cache"
        raise ModelError(message) from error
    order = manifest.graph["cache_order"]
    return unfold(blocks, layout, None if order is None else torch.tensor(order), beta=beta)


def _gates(bundle: Path) -> Gates:
    """Those that the export was held to; the default ones for a bare `.onnx`."""
    path = bundle / PARITY_FILE
    return Gates(**json.loads(path.read_text(encoding="utf-8"))["gates"]) if path.is_file() else Gates()
