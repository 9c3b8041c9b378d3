"""A tiny bundle whose head is an input of its graph, and photos to teach it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from runtime_samples import EMBED_DIM, LABELS, SIZE, tiny_manifest, weights

from calipso_runtime import bundle, graph_file
from calipso_runtime.hashes import sha256_of
from calipso_runtime.head.classes import Head, new_head
from calipso_runtime.head.file import write_head
from calipso_runtime.manifest import Manifest, write_manifest
from calipso_runtime.parity import Gates
from calipso_runtime.reference import Reference, write_reference

SCALE, BIAS = 10.0, -0.5
SHOTS = 3


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    values = rng.standard_normal(shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def sample_head(
    *,
    labels: tuple[str, ...] = LABELS,
    shots: int = SHOTS,
    width: int = EMBED_DIM,
    uses_cache: bool = True,
    seed: int = 0,
) -> Head:
    """Classes around directions of their own, with keys near these."""
    rng = np.random.default_rng(seed)
    centres = unit(rng, len(labels), width)
    keys = np.repeat(centres, shots, axis=0) + 0.4 * unit(rng, len(labels) * shots, width)
    text = centres + unit(rng, 1, width) + 0.3 * unit(rng, len(labels), width)
    return new_head(
        labels,
        (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32),
        (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32),
        np.repeat(np.arange(len(labels)), shots),
        weights={"alpha": 1.5, "beta": 4.0} if uses_cache else None,
        scale=SCALE,
        bias=BIAS,
    )


def photo(seed: int) -> np.ndarray:
    """Pixels in four colours: far from other seeds', for a graph that averages them."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def photos(seed: int, count: int = 5) -> list[np.ndarray]:
    """Of one thing: the same colours with noise."""
    rng = np.random.default_rng(seed)
    return [np.clip(photo(seed) + rng.integers(-30, 31, (*SIZE, 3)), 0, 255).astype(np.uint8) for _ in range(count)]


def make_teachable(folder: Path, head: Head | None = None, *, reference: Reference | None = None) -> Path:
    """Write the bundle."""
    head = head or sample_head()
    folder.mkdir(parents=True, exist_ok=True)
    write_head(folder / bundle.HEAD_FILE, head)
    manifest = _manifest(head, sha256_of(folder / bundle.HEAD_FILE))
    write_graph(folder / graph_file.MODEL_FILE, manifest)
    if reference is not None:
        answers = {"embedding": reference.answers.outputs["embedding"]}
        answers["logits"] = head.logits(answers["embedding"]).astype(np.float32)
        given = dataclasses.replace(reference, answers=dataclasses.replace(reference.answers, outputs=answers))
        write_reference(folder / bundle.REFERENCE_FILE, given)
        (folder / bundle.PARITY_FILE).write_text(json.dumps({"gates": dataclasses.asdict(Gates())}))
    files = {path.name: bundle.file_entry(path) for path in sorted(folder.iterdir())}
    whole = dataclasses.replace(manifest, files=files, parity="passed")
    write_manifest(folder / bundle.MANIFEST_FILE, whole)
    return folder


def _manifest(head: Head, digest: str) -> Manifest:
    cache: dict[str, Any] = {"used": head.alpha > 0, "alpha": head.alpha, "beta": head.beta}
    model = {
        "name": "tiny",
        "family": "vit",
        "embed_dim": head.width,
        "logit_scale": head.scale,
        "logit_bias": head.bias,
        "weights": {"source": "random"},
    }
    calip = {"used": False, "reason": "switched off"}
    return tiny_manifest(
        labels=head.labels,
        model=model,
        head={"kind": "inputs", "sha256": digest, "calip": calip, "tip_adapter": cache},
    )


def write_graph(path: Path, manifest: Manifest) -> None:
    """The tiny tower of `runtime_samples`, and the head of an export with `head_mode` inputs."""
    features, _ = weights()
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Slice", ["flat", "zero", "eight", "one"], ["eight_values"]),
        helper.make_node("MatMul", ["eight_values", "features"], ["unscaled"]),
        helper.make_node("LpNormalization", ["unscaled"], ["embedding"], axis=1, p=2),
        helper.make_node("Transpose", ["embedding"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["keys", "turned"], ["affinity"]),
        helper.make_node("Unsqueeze", ["offset", "last"], ["offsets"]),
        helper.make_node("Add", ["affinity", "offsets"], ["shifted"]),
        helper.make_node("Exp", ["shifted"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "one"], ["cached"], keepdims=0),
        helper.make_node("MatMul", ["text", "turned"], ["plain"]),
        helper.make_node("Add", ["plain", "cached"], ["both"]),
        helper.make_node("Transpose", ["both"], ["unbiased"], perm=[1, 0]),
        helper.make_node("Add", ["unbiased", "bias"], ["logits"]),
    ]
    constants: dict[str, np.ndarray] = {"features": features, "bias": np.float32(BIAS)}
    numbers = (("zero", 0), ("eight", 8), ("one", 1), ("last", -1))
    constants |= {name: np.array([value], np.int64) for name, value in numbers}
    sizes: dict[str, list[int | str]] = {
        "image": ["batch", 3, *SIZE],
        "text": ["classes", EMBED_DIM],
        "keys": ["classes", "shots", EMBED_DIM],
        "offset": ["classes", "shots"],
    }
    given: dict[str, list[int | str]] = {"logits": ["batch", "classes"], "embedding": ["batch", EMBED_DIM]}
    graph = helper.make_graph(
        nodes,
        "teachable",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(
        model,
        {
            graph_file.METADATA_MANIFEST: json.dumps(manifest.core()),
            graph_file.METADATA_DIGEST: graph_file.DIGEST_PLACEHOLDER.decode(),
        },
    )
    onnx.save(model, str(path))
    graph_file.seal_model(path)
