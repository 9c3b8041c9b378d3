"""Products in eight bits are one operator of ONNX Runtime, whoever else reads their activation."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from precision_samples import graph_of, lowered, node, run

from calipso_export.forms.matching import ORT_DOMAIN
from calipso_export.precision import PRECISIONS
from calipso_export.precision.integer_products import fuse_integer_products
from calipso_export.precision.quantised import INT8, quantise

WIDTH = 64
NAMES = "qkv"


def attention_like(*, added: str = "") -> ir.Model:
    """Three projections of one activation, each with what is `added`, and their sum, between two other products."""
    rng = np.random.default_rng(0)
    weights = {f"w_{name}": (WIDTH, WIDTH) for name in ("in", *NAMES, "out")}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in weights.items()}
    arrays |= {"channels": rng.standard_normal(WIDTH).astype(np.float32), "number": np.array([0.5], np.float32)}
    nodes = [node("MatMul", ["x", "w_in"], "h"), *(node("MatMul", ["h", f"w_{name}"], name) for name in NAMES)]
    if added:
        nodes += [node("Add", [added, name], f"{name}_added") for name in NAMES]
    ends = [f"{name}_added" if added else name for name in NAMES]
    nodes += [node("Sum", ends, "s"), node("MatMul", ["s", "w_out"], "y")]
    arrays = {name: array for name, array in arrays.items() if any(name in each.input for each in nodes)}
    return graph_of(nodes, arrays, shape=["batch", 5, WIDTH])


def quantised(model: ir.Model) -> ir.Model:
    quantise(model.graph, INT8, ranges={"h": 6.0})
    return model


def operators(model: ir.Model) -> Counter[str]:
    return Counter(each.op_type for each in model.graph)


@pytest.mark.parametrize("added", ["", "channels"])
def test_the_answers_are_those_of_the_quantised_products(added: str) -> None:
    model = quantised(attention_like(added=added))
    x = np.random.default_rng(1).standard_normal((2, 5, WIDTH)).astype(np.float32)
    wanted = run(model, x)

    assert fuse_integer_products(model.graph) == 3

    np.testing.assert_allclose(run(model, x), wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


def test_products_that_share_an_activation_read_it_from_one_node() -> None:
    model = quantised(attention_like())

    fuse_integer_products(model.graph)

    assert operators(model) == {"MatMul": 2, "QuantizeLinear": 1, "MatMulIntegerToFloat": 3, "Sum": 1}
    assert model.graph.opset_imports[ORT_DOMAIN] == 1


def test_the_bias_of_each_channel_goes_into_the_product() -> None:
    model = quantised(attention_like(added="channels"))

    fuse_integer_products(model.graph)

    assert "Add" not in operators(model)


def test_what_is_added_otherwise_stays_behind_the_product() -> None:
    model = quantised(attention_like(added="number"))

    fuse_integer_products(model.graph)

    assert operators(model)["Add"] == 3
    assert operators(model)["MatMulIntegerToFloat"] == 3


def test_products_of_which_only_the_weight_has_eight_bits_stay() -> None:
    model = attention_like()
    quantise(model.graph, INT8, ranges=None)

    assert fuse_integer_products(model.graph) == 0
    assert operators(model)["MatMul"] == 5


def test_int8_restores_no_weight_in_onnx_runtime(tmp_path: Path) -> None:
    ort = lowered(attention_like(added="channels"), PRECISIONS["int8"]).ort
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")

    onnxruntime.InferenceSession(ir.to_proto(ort).SerializeToString(), options, providers=["CPUExecutionProvider"])

    left = {each.op_type for each in onnx.load(options.optimized_model_filepath).graph.node}
    assert "MatMulIntegerToFloat" in left
    assert "DequantizeLinear" not in left


def test_the_portable_graph_keeps_to_standard_operators() -> None:
    portable = lowered(attention_like(), PRECISIONS["int8"]).portable

    assert {each.domain for each in portable.graph} == {""}
