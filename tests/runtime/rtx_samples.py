"""Small bundles of each precision for a real compiler: a tower of one attention block, and a head in fp32."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from runtime_samples import LABELS, tiny_manifest

from calipso_runtime import bundle, graph_file
from calipso_runtime.manifest import write_manifest

OPSET = 20
TOKENS, WIDTH, HEADS = 16, 64, 4
BLOCK = "tower.block"
_PATCH = 3 * 16
_HALF = ("fp16", "bf16", "int8-fp16", "fp8")
_EIGHT_BITS = {"int8": TensorProto.INT8, "int8-fp16": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
_BASES = {"fp32": TensorProto.FLOAT, "int8": TensorProto.FLOAT, "bf16": TensorProto.BFLOAT16}


class Graph:
    """Nodes and constants of a graph whose products are in a precision."""

    def __init__(self, precision: str) -> None:
        self.base = _BASES.get(precision, TensorProto.FLOAT16)
        self.eight = _EIGHT_BITS.get(precision)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def add(self, operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node that is called `name`, and so is its output."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray, kind: int) -> str:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        self.constants.append(numpy_helper.from_array(array.astype(dtype), name))
        return name

    def shape(self, name: str, *sizes: int) -> str:
        return self.constant(name, np.array(sizes), TensorProto.INT64)

    def weights(self, rows: int, columns: int) -> np.ndarray:
        return self._rng.standard_normal((rows, columns)) / np.sqrt(rows)

    def product(self, value: str, name: str, rows: int, columns: int) -> str:
        """A product with a constant, quantised where the precision says so."""
        array = self.weights(rows, columns)
        if self.eight is None:
            return self.add("MatMul", [value, self.constant(f"{name}.weight", array, self.base)], name)
        most = 448 if self.eight == TensorProto.FLOAT8E4M3FN else 127
        step = self.constant(f"{name}.step", np.array(4 / most), self.base)
        zero = self.constant(f"{name}.zero", np.array(0), self.eight)
        quantised = self.add("QuantizeLinear", [value, step, zero], f"{name}/quantise")
        scales = np.abs(array).max(axis=0) / most
        stored = (array / scales) if most == 448 else np.rint(array / scales)
        weight = [
            self.constant(f"{name}.weight", stored, self.eight),
            self.constant(f"{name}.scales", scales, self.base),
            self.constant(f"{name}.zeros", np.zeros(columns), self.eight),
        ]
        factors = [
            self.add("DequantizeLinear", [quantised, step, zero], f"{name}/dequantise"),
            self.add("DequantizeLinear", weight, f"{name}/dequantise_weight", axis=1),
        ]
        return self.add("MatMul", factors, name)


def attention_model(precision: str) -> onnx.ModelProto:
    """Patches, one block of attention and one product behind it, and the logits of their mean in fp32."""
    graph = Graph(precision)
    image = graph.add("Cast", ["image"], "tower/Cast", to=graph.base)
    patches = graph.add("Reshape", [image, graph.shape("patches", 0, TOKENS, _PATCH)], "tower/Reshape")
    width = WIDTH // HEADS
    tokens = graph.product(patches, "tower.embed/MatMul", _PATCH, WIDTH)
    split = graph.shape("split", 0, TOKENS, HEADS, width)
    parts = {}
    for part, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        projected = graph.product(tokens, f"{BLOCK}.{part}/MatMul", WIDTH, WIDTH)
        heads = graph.add("Reshape", [projected, split], f"{BLOCK}.{part}/Reshape")
        parts[part] = graph.add("Transpose", [heads], f"{BLOCK}.{part}/Transpose", perm=order)
    scale = graph.constant("scale", np.array(width**-0.5), graph.base)
    query = graph.add("Mul", [parts["q"], scale], f"{BLOCK}/Mul")
    scores = graph.add("MatMul", [query, parts["k"]], f"{BLOCK}/MatMul_2")
    shares = graph.add("Softmax", [scores], f"{BLOCK}/Softmax", axis=-1)
    mixed = graph.add("MatMul", [shares, parts["v"]], f"{BLOCK}/MatMul_3")
    heads = graph.add("Transpose", [mixed], f"{BLOCK}/Transpose", perm=(0, 2, 1, 3))
    joined = graph.add("Reshape", [heads, graph.shape("joined", 0, TOKENS, WIDTH)], f"{BLOCK}/Reshape")
    answer = graph.product(joined, f"{BLOCK}.out/MatMul", WIDTH, WIDTH)
    whole = graph.add("Cast", [answer], "head/Cast", to=TensorProto.FLOAT)
    mean = graph.add("ReduceMean", [whole, graph.shape("axis", 1)], "head/ReduceMean", keepdims=0)
    text = graph.constant("text", graph.weights(WIDTH, len(LABELS)), TensorProto.FLOAT)
    graph.nodes.append(helper.make_node("MatMul", [mean, text], ["logits"], name="head/MatMul"))
    return model_of(graph.nodes, graph.constants, ["batch", 3, 16, 16], ["batch", len(LABELS)])


def deep_model(layers: int) -> onnx.ModelProto:
    """A graph that takes the compiler seconds: so many different products, one after another."""
    graph = Graph("fp16")
    image = graph.add("Cast", ["image"], "tower/Cast", to=graph.base)
    value = graph.add("Reshape", [image, graph.shape("patches", 0, TOKENS, _PATCH)], "tower/Reshape")
    columns = _PATCH
    for place in range(layers):
        rows, columns = columns, WIDTH + 8 * place
        value = graph.add("Softmax", [graph.product(value, f"tower.{place}/MatMul", rows, columns)], f"softmax {place}")
    whole = graph.add("Cast", [value], "head/Cast", to=TensorProto.FLOAT)
    graph.nodes.append(
        helper.make_node("ReduceMean", [whole, graph.shape("axes", 1)], ["logits"], name="head/mean", keepdims=0)
    )
    return model_of(graph.nodes, graph.constants, ["batch", 3, 16, 16], ["batch", columns])


def crashing_model() -> onnx.ModelProto:
    """The Attention operator on one tensor as query, key and value, on which TensorRT for RTX 1.7 crashes."""
    node = helper.make_node("Attention", ["image"] * 3, ["logits"], name="tower.block/Attention")
    return model_of([node], [], [1, 4, 8, 8], [1, 4, 8, 8], opset=24)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    image: list[int | str],
    logits: list[int | str],
    *,
    opset: int = OPSET,
) -> onnx.ModelProto:
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("image", image), ("logits", logits))
    )
    graph = helper.make_graph(nodes, "sample", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def write_bundle(folder: Path, model: onnx.ModelProto, *, precision: str = "fp16") -> Path:
    """A bundle of a graph with the input image and the output logits."""
    inputs, outputs = (
        {each.name: {"dtype": "float32"} for each in side} for side in (model.graph.input, model.graph.output)
    )
    graph = {"opset": OPSET, "inputs": inputs, "outputs": outputs}
    properties = {
        graph_file.METADATA_MANIFEST: json.dumps(tiny_manifest(precision=precision, graph=graph).core()),
        graph_file.METADATA_DIGEST: graph_file.DIGEST_PLACEHOLDER.decode(),
    }
    helper.set_model_props(model, properties)
    folder.mkdir()
    path = folder / graph_file.MODEL_FILE
    onnx.save(model, str(path))
    graph_file.seal_model(path)
    files = {path.name: bundle.file_entry(path)}
    write_manifest(
        folder / bundle.MANIFEST_FILE, tiny_manifest(precision=precision, graph=graph, parity="passed", files=files)
    )
    return folder
