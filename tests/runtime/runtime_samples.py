"""Pictures of every mode, and tiny real graphs with the numpy that says what they compute."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from calipso_runtime import bundle, graph_file
from calipso_runtime.manifest import Manifest, Preprocess, write_manifest
from calipso_runtime.parity import Answers
from calipso_runtime.preprocess import normalise
from calipso_runtime.reference import Reference

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MODES = ("RGB", "L", "LA", "RGBA", "CMYK", "P", "1", "PA", "RGBa", "YCbCr", "HSV", "LAB", "RGBX")
FILLS = {"shortest": 0, "longest": 127, "squash": 0}
SIZES = ((70, 50), (50, 70), (13, 9), (32, 32), (24, 41), (640, 20))
LABELS = ("tulip", "daisy", "rose", "lily", "iris", "poppy", "aster")
EMBED_DIM = 5
SIZE = (16, 16)
CONFIG = Preprocess(
    size=SIZE,
    mean=MEAN,
    std=STD,
)

Transform = Callable[[Image.Image], npt.NDArray[np.float32]]
BuildTransform = Callable[[Preprocess], Transform]
MakeBundle = Callable[..., Path]


def configs(resize_mode: str) -> list[Preprocess]:
    return [
        Preprocess(
            size=size,
            mean=MEAN,
            std=STD,
            interpolation=interpolation,
            resize_mode=resize_mode,
            fill_color=FILLS[resize_mode],
        )
        for interpolation in ("bicubic", "bilinear")
        for size in ((32, 32), (24, 40), (41, 23))
    ]


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise in every band, the upper half of it black and white so that a bicubic filter overshoots."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(-300, 70_000, (height, width), dtype=np.int32))
    if mode == "F":
        return Image.fromarray(rng.uniform(-50, 300, (height, width)).astype(np.float32))
    levels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    levels[: height // 2] = 255 * (levels[: height // 2] > 127)
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), levels[..., :3].tobytes())
    image = Image.fromarray(levels)
    for step in {"PA": ("RGB", "P", "PA"), "RGBa": ("RGBa",), "LA": ("LA",), "RGBA": ()}.get(mode, ("RGB", mode)):
        image = image.convert(step)
    return image


def weights() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The tiny graph's features [8,EMBED_DIM] and text weights [EMBED_DIM,K]."""
    rng = np.random.default_rng(7)
    features = rng.standard_normal((8, EMBED_DIM)).astype(np.float32)
    return features, (10 * rng.standard_normal((EMBED_DIM, len(LABELS)))).astype(np.float32)


def reference_logits(tensors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the tiny graph computes, in numpy: float32 [N,3,16,16] -> float32 [N,K]."""
    return reference_answers(tensors)["logits"]


def reference_answers(tensors: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """All that the tiny graph gives: logits [N,K] and embedding [N,EMBED_DIM]."""
    features, text = weights()
    pooled = tensors.reshape(len(tensors), 3, 2, 8, 2, 8).mean((3, 5)).reshape(len(tensors), 12)[:, :8]
    embedding = pooled @ features
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return {"logits": embedding @ text, "embedding": embedding}


def tiny_reference(**changes: object) -> Reference:
    """Four pictures and two edge cases of noise, with the tiny graph's own answers; the first two are labelled."""
    pixels = np.random.default_rng(3).integers(0, 256, (6, *SIZE, 3), dtype=np.uint8)
    tensors = np.stack([normalise(each, CONFIG) for each in pixels])
    values = {
        "pixels": pixels,
        "answers": Answers(outputs=reference_answers(tensors)),
        "names": ("tulip/1.jpg", "rösti.png", "c", "d", "<black>", "<one pixel>"),
        "truth": (0, 6, None, None, None, None),
        "edge_cases": 2,
        "given": 4,
    }
    return Reference(**{**values, **changes})


def tiny_manifest(**changes: object) -> Manifest:
    values = {
        "labels": LABELS,
        "preprocess": CONFIG,
        "precision": "fp32",
        "model": {"name": "tiny", "family": "vit", "embed_dim": EMBED_DIM, "weights": {"source": "random"}},
        "prompts": {"templates": ["a photo of a {}."]},
        "head": {
            "kind": "baked",
            "calip": {"used": False, "reason": "switched off"},
            "tip_adapter": {"used": True, "alpha": 1.0, "beta": 1e-05},
        },
        "graph": {
            "opset": 18,
            "inputs": {"image": {"dtype": "float32", "shape": ["batch", 3, *SIZE]}},
            "outputs": {
                "logits": {"dtype": "float32", "shape": ["batch", len(LABELS)]},
                "embedding": {"dtype": "float32", "shape": ["batch", EMBED_DIM]},
            },
        },
        "tools": {"onnx": onnx.__version__},
    }
    return Manifest(**{**values, **changes})


def write_model(path: Path, manifest: Manifest, *, outputs: tuple[str, ...] = ("logits", "embedding")) -> None:
    """A sealed graph: average-pooled pixels, a linear tower, a linear head."""
    features, text = weights()
    height, width = SIZE
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Slice", ["flat", "zero", "eight", "one"], ["eight_values"]),
        helper.make_node("MatMul", ["eight_values", "features"], ["unscaled"]),
        helper.make_node("LpNormalization", ["unscaled"], ["embedding"], axis=1, p=2),
        helper.make_node("MatMul", ["embedding", "text"], ["logits"]),
    ]
    sizes = {"logits": len(LABELS), "embedding": EMBED_DIM}
    constants = {"features": features, "text": text}
    constants |= {name: np.array([value], np.int64) for name, value in (("zero", 0), ("eight", 8), ("one", 1))}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, height, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", sizes[name]]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    seal(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path, manifest)


def write_graph(folder: Path, model: onnx.ModelProto, manifest: Manifest) -> Path:
    """A bundle of any graph; returns its folder."""
    folder.mkdir(exist_ok=True)
    seal(model, folder / graph_file.MODEL_FILE, manifest)
    files = {path.name: bundle.file_entry(path) for path in sorted(folder.iterdir())}
    write_manifest(folder / bundle.MANIFEST_FILE, dataclasses.replace(manifest, files=files))
    return folder


def seal(model: onnx.ModelProto, path: Path, manifest: Manifest) -> None:
    """Write a graph with its manifest inside."""
    properties = {
        graph_file.METADATA_MANIFEST: json.dumps(manifest.core()),
        graph_file.METADATA_DIGEST: graph_file.DIGEST_PLACEHOLDER.decode(),
    }
    helper.set_model_props(model, properties)
    onnx.save(model, str(path))
    graph_file.seal_model(path)
