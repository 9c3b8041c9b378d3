"""Graphs that prepare pictures and do nothing else, to compare with open_clip's transform level by level."""

import functools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from PIL import Image

from calipso_export.clip import open_clip
from calipso_export.pixels import attach
from calipso_runtime.manifest import Preprocess
from calipso_runtime.pixel_input import PixelInput
from calipso_runtime.preprocess import normalise

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def preparing(**changes: object) -> Preprocess:
    """CLIP's preparation of pictures, with changes."""
    return Preprocess(**{"size": (224, 224), **CLIP, **changes})


def empty_graph(size: tuple[int, int]) -> ir.Model:
    """A graph that gives back the images that it takes."""
    image = ir.Value(name="image", shape=ir.Shape(["batch", 3, *size]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Identity", [image], name="tower/Identity")
    output = node.outputs[0]
    output.name, output.shape, output.type = "prepared", image.shape, image.type
    return ir.Model(ir.Graph([image], [output], nodes=[node], opset_imports={"": 18}, name="empty"), ir_version=10)


def graph_of(config: Preprocess, *, casts_first: bool = True, **taken: object) -> onnx.ModelProto:
    """A graph that gives what the tower would be given."""
    graph = attach(empty_graph(config.size), PixelInput(**taken), config, casts_first=casts_first)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@functools.lru_cache(maxsize=64)
def session(config: Preprocess, taken: tuple[tuple[str, object], ...]) -> onnxruntime.InferenceSession:
    """The same in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = graph_of(config, **dict(taken)).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def prepared(pixels: np.ndarray, config: Preprocess, **taken: object) -> np.ndarray:
    """What the graph makes of one picture, float32 [3,h,w]."""
    (answer,) = session(config, tuple(taken.items())).run(None, {"pixels": pixels[None]})
    return answer[0]


def levels(pixels: np.ndarray, config: Preprocess, **taken: object) -> np.ndarray:
    """The same as levels, int [h,w,3]; they are whole, and normalised bit for bit as the runtime normalises."""
    image = prepared(pixels, config, **taken)
    found = whole(image, config)
    np.testing.assert_array_equal(normalise(found.astype(np.uint8), config), image)
    return found


def whole(image: np.ndarray, config: Preprocess) -> np.ndarray:
    """Normalised values -> the nearest levels, int [h,w,3]."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (config.mean, config.std))
    return np.rint((image * std + mean) * 255).astype(int).transpose(1, 2, 0)


def open_clips(picture: Image.Image, config: Preprocess) -> np.ndarray:
    """The levels of open_clip's own transform."""
    return whole(_transform(config)(picture).numpy(), config)


@functools.lru_cache(maxsize=64)
def _transform(config: Preprocess) -> object:
    settings = open_clip.transform.PreprocessCfg(
        size=config.size,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        resize_mode=config.resize_mode,
        fill_color=config.fill_color,
    )
    return open_clip.transform.image_transform_v2(settings, is_train=False)


def noise_pixels(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """White noise: the picture on which a wrong weight shows most."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
