"""Tiny real bundles with a text tower, of one graph or of two, and the numpy that says what they compute."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from runtime_samples import EMBED_DIM, SIZE, reference_answers, tiny_manifest, weights
from tokenizers import Tokenizer, models, pre_tokenizers

from calipso_runtime import bundle, graph_file
from calipso_runtime.bundle import file_entry
from calipso_runtime.manifest import Manifest, write_manifest

CONTEXT, SCALE, BIAS = 8, 20.0, -1.5
WORDS = ("a", "photo", "of", "drawing", "the", "cat", "dog", "bird", ".", *"0123456789")
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, **{word: place for place, word in enumerate(WORDS, start=2)}}
# Nodes, and the constants that they read.
_Network = tuple[list[onnx.NodeProto], dict[str, npt.NDArray[Any]]]
TEMPLATES = ("a photo of {}.", "a drawing of the {}")


def table(width: int = EMBED_DIM) -> npt.NDArray[np.float32]:
    """The feature of each token, [V,D]."""
    return np.random.default_rng(11).standard_normal((len(VOCABULARY), width)).astype(np.float32)


def words_of(text: str) -> list[str]:
    """As the tokenizer splits it: words, single digits, and marks."""
    spaced = "".join(f" {each} " if not each.isalpha() else each for each in text)
    return spaced.split()


def ids_of(text: str) -> list[int]:
    """Of one text, cut and padded."""
    found = [VOCABULARY.get(word, 1) for word in words_of(text)][:CONTEXT]
    return found + [0] * (CONTEXT - len(found))


def text_features(texts: list[str], width: int = EMBED_DIM) -> npt.NDArray[np.float64]:
    """What the tiny text tower computes: float64 [N,D], of length 1."""
    rows = table(width).astype(np.float64)[np.array([ids_of(text) for text in texts])]
    # A place weighs by its number, so that the order of words matters.
    found = (rows * np.arange(1, CONTEXT + 1)[:, None]).mean(axis=1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def label_features(labels: list[str], templates: tuple[str, ...] = TEMPLATES) -> npt.NDArray[np.float64]:
    """The normalised mean over the prompts of each label."""
    means = np.stack([text_features([each.replace("{}", label) for each in templates]).mean(0) for label in labels])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def expected_logits(tensors: npt.NDArray[np.float32], features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of pictures as the graph takes them, over texts."""
    return SCALE * reference_answers(tensors)["embedding"].astype(np.float64) @ features.T + BIAS


def write_tokenizer(path: Path) -> dict[str, Any]:
    """`tokenizer.json`, and the manifest's table of it."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    content = tokenizer.to_str().encode()
    path.write_bytes(content)
    return {
        "kind": "hf",
        "clean": "whitespace",
        "context_length": CONTEXT,
        "vocab_size": len(VOCABULARY),
        "sha256": hashlib.sha256(content).hexdigest(),
        "pad": 0,
    }


def _info(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _image_nodes(width: int) -> _Network:
    features = weights()[0]
    widened = np.concatenate([features, np.zeros((len(features), width - EMBED_DIM), np.float32)], axis=1)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Slice", ["flat", "zero", "eight", "one"], ["eight_values"]),
        helper.make_node("MatMul", ["eight_values", "features"], ["unscaled"]),
        helper.make_node("LpNormalization", ["unscaled"], ["embedding"], axis=1, p=2),
    ]
    numbers = {name: np.array([value], np.int64) for name, value in (("zero", 0), ("eight", 8), ("one", 1))}
    return nodes, {"features": widened, **numbers}


def _text_nodes(width: int) -> _Network:
    nodes = [
        helper.make_node("Gather", ["table", "token_ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "places"], ["weighed"]),
        helper.make_node("ReduceMean", ["weighed", "along"], ["mean"], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["text_embedding"], axis=1, p=2),
    ]
    places = np.arange(1, CONTEXT + 1, dtype=np.float32)[:, None]
    return nodes, {"table": table(width), "places": places, "along": np.array([1], np.int64)}


def _save(
    path: Path,
    manifest: Manifest,
    network: _Network,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> None:
    nodes, arrays = network
    constants = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    properties = {
        graph_file.METADATA_MANIFEST: json.dumps(manifest.core()),
        graph_file.METADATA_DIGEST: graph_file.DIGEST_PLACEHOLDER.decode(),
    }
    helper.set_model_props(model, properties)
    onnx.save(model, str(path))
    graph_file.seal_model(path)


def write_open_bundle(folder: Path, *, kind: str = "open", width: int = EMBED_DIM, **changes: Any) -> Path:
    """A bundle that takes any labels: "open" of one graph, "embed" of two."""
    folder.mkdir(parents=True)
    settings = write_tokenizer(folder / bundle.TOKENIZER_FILE)
    manifest = tiny_manifest(
        **{
            "labels": (),
            "model": {
                "name": "tiny",
                "family": "vit",
                "embed_dim": width,
                "logit_scale": SCALE,
                "logit_bias": BIAS,
                "weights": {"source": "random"},
            },
            "prompts": {"source": "test", "templates": list(TEMPLATES), "per_class": None},
            "head": {"kind": kind},
            "graph": {"opset": 18},
            "tokenizer": settings,
            **changes,
        }
    )
    image = _info("image", ["batch", 3, *SIZE])
    ids = _info("token_ids", ["texts", CONTEXT], TensorProto.INT64)
    embedding, text = _info("embedding", ["batch", width]), _info("text_embedding", ["texts", width])
    image_nodes, image_arrays = _image_nodes(width)
    text_nodes, text_arrays = _text_nodes(width)
    if kind == "embed":
        _save(folder / graph_file.MODEL_FILE, manifest, (image_nodes, image_arrays), [image], [embedding])
        _save(folder / graph_file.TEXT_FILE, manifest, (text_nodes, text_arrays), [ids], [text])
    else:
        head = [
            helper.make_node("Transpose", ["text_embedding"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["embedding", "turned"], ["cosines"]),
            helper.make_node("Mul", ["cosines", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "bias"], ["logits"]),
        ]
        scalars = {"scale": np.float32(SCALE).reshape(1), "bias": np.float32(BIAS).reshape(1)}
        nodes, arrays = [*image_nodes, *text_nodes, *head], {**image_arrays, **text_arrays, **scalars}
        outputs = [_info("logits", ["batch", "texts"]), embedding, text]
        _save(folder / graph_file.MODEL_FILE, manifest, (nodes, arrays), [image, ids], outputs)
    files = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
    write_manifest(folder / bundle.MANIFEST_FILE, Manifest(**{**vars(manifest), "files": files, "parity": "passed"}))
    return folder
