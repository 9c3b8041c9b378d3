"""Tiny open_clip models, photos and configurations that the exporter's tests share."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from calipso_export import ExportConfig
from calipso_export.steps import trace as trace_step
from calipso_runtime.errors import CalipsoError
from calipso_runtime.graph_file import MODEL_FILE

T = TypeVar("T")

# The stock tokenizer needs its whole vocabulary; everything else is as small as it can be.
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT_VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
RESNET_VISION = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}
VIT = {"embed_dim": 32, "vision_cfg": VIT_VISION, "text_cfg": TEXT}
RESNET = {"embed_dim": 32, "vision_cfg": RESNET_VISION, "text_cfg": TEXT}
CLASSES = ("ant", "bee", "crab")
SHOTS = 3
# The head of the bundle that many tests share: both methods, with weights that matter.
HEAD = {"alpha": 1.5, "beta": 5.5, "b2": 1.0, "b3": 0.1}

# What heads of CALIP are drawn from, by property tests.
CALIP_HEADS: Mapping[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 1 << 32),
    "pictures": st.integers(1, 3),
    "positions": st.integers(1, 50),
    "classes": st.integers(2, 12),
    "width": st.integers(1, 32),
    "scale": st.floats(1, 120),
    "b2": st.floats(0, 6),
    "b3": st.floats(0, 1),
}

MakeConfig = Callable[..., ExportConfig]


def write_model(path: Path, document: Mapping[str, Any] = VIT, *, vision: Mapping[str, Any] | None = None) -> Path:
    """An open_clip model configuration, with changes to its vision tower."""
    changed = {**document, "vision_cfg": {**document["vision_cfg"], **(vision or {})}}
    path.write_text(json.dumps(changed))
    return path


def noise(seed: int, *, mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Image.Image:
    """A picture of coloured noise, of any mode that files can have."""
    rng = np.random.default_rng(seed)
    width, height = size
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    return image if mode == "RGBA" else image.convert("LA" if mode == "LA" else "RGB").convert(mode)


def write_shots(folder: Path, classes: Sequence[str] = CLASSES, *, count: int = SHOTS) -> Path:
    """`folder/<class>/<number>.png`, every photo another."""
    for row, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise(100 * row + number).save(folder / name / f"{number}.png")
    return folder


def below(folder: Path) -> set[str]:
    """Everything in a folder, hidden files included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def answer_or_refusal(function: Callable[..., T], *arguments: Any) -> tuple[T | None, str]:
    """What a function returns, or None and why it refused; anything but a CalipsoError goes through."""
    try:
        return function(*arguments), ""
    except CalipsoError as error:
        return None, str(error)


def unit_vectors(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32, of length 1 along the last axis."""
    values = rng.standard_normal(shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def trace_only_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trace step take the graph of a bundle of the same model, head and outputs, which takes no time."""

    def trace(*_: object) -> ir.Model:
        graph = ir.from_proto(onnx.load(bundle / MODEL_FILE))
        graph.metadata_props.clear()
        return graph

    monkeypatch.setattr(trace_step, "trace", trace)


def crafted_graph(
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, np.ndarray],
    *,
    shape: Sequence[int | str],
    result: str = "y",
    opset: int = 18,
) -> onnx.ModelProto:
    """A graph from x float32 to `result` float32, with these initializers."""
    graph = helper.make_graph(
        nodes,
        "crafted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def shared_config(**changes: object) -> ExportConfig:
    """What many exports of tests have in common; a model and an output are to be given."""
    values = {
        "random_init": 0,
        "classes": CLASSES,
        "templates": "photo",
        "epochs": 2,
        "outputs": ("logits", "embedding", "probabilities", "tokens"),
        **HEAD,
    }
    return ExportConfig(**{**values, **changes})
