"""Products in eight bits are one operator of ONNX Runtime, whoever else reads their activation."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from precision_samples import graph_of, lowered, node, node_named, run

from calipso_export.forms.matching import ORT_DOMAIN
from calipso_export.precision import PRECISIONS
from calipso_export.precision.integer_products import fuse_integer_products, is_product
from calipso_export.precision.quantised import INT8_PAIR_SAFE, quantise

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


def maps(*, between: str = "", kernel: tuple[int, int] = (1, 1), **attributes: object) -> ir.Model:
    """Three convolutions with biases, the middle one as given, and an operator `between` the first two."""
    rng = np.random.default_rng(0)
    kernels = {"w0": (1, 1), "w1": kernel, "w2": (1, 1)}
    arrays = {
        name: rng.standard_normal((WIDTH, WIDTH, *size)).astype(np.float32) / 16 for name, size in kernels.items()
    }
    arrays |= {f"b{place}": rng.standard_normal(WIDTH).astype(np.float32) for place in range(3)}
    nodes = [
        node("Conv", ["x", "w0", "b0"], "h"),
        *([node(between, ["h"], "i")] if between else []),
        node("Conv", ["i" if between else "h", "w1", "b1"], "j", **attributes),
        node("Conv", ["j", "w2", "b2"], "y"),
    ]
    return graph_of(nodes, arrays, shape=["batch", WIDTH, 7, 8])


def quantised(model: ir.Model) -> ir.Model:
    """With eight bits in all but the first and the last product."""
    names = {str(value.name) for each in model.graph for value in each.outputs}
    quantise(model.graph, INT8_PAIR_SAFE, ranges=dict.fromkeys(names, 6.0))
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


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((1, 1), {}),
        ((1, 1), {"strides": [2, 2]}),
        ((3, 3), {}),
        ((3, 3), {"pads": [1, 1, 1, 1]}),
        ((3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((2, 3), {"pads": [0, 1, 1, 2], "strides": [1, 2]}),
    ],
)
def test_convolutions_answer_as_quantised_ones(kernel: tuple[int, int], attributes: dict[str, object]) -> None:
    model = quantised(maps(kernel=kernel, **attributes))
    x = np.random.default_rng(1).standard_normal((2, WIDTH, 7, 8)).astype(np.float32)
    wanted = run(model, x)

    assert fuse_integer_products(model.graph) == 1

    np.testing.assert_allclose(run(model, x), wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
    assert operators(model)["Conv"] == 2


def test_an_elementwise_operator_between_two_convolutions_works_on_rows() -> None:
    rng = np.random.default_rng(0)
    arrays = {f"w{place}": rng.standard_normal((WIDTH, WIDTH, 1, 1)).astype(np.float32) for place in range(4)}
    nodes = [
        node("Conv", ["x", "w0"], "h"),
        node("Conv", ["h", "w1"], "i"),
        node("Relu", ["i"], "j"),
        node("Conv", ["j", "w2"], "k"),
        node("Conv", ["k", "w3"], "y"),
    ]
    model = quantised(graph_of(nodes, arrays, shape=["batch", WIDTH, 3, 4]))

    assert fuse_integer_products(model.graph) == 2

    (relu,) = [each for each in model.graph if each.op_type == "Relu"]
    assert relu.inputs[0].producer().op_type == "MatMulIntegerToFloat"
    assert [each.op_type for each in relu.outputs[0].consumers()] == ["QuantizeLinear"]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((WIDTH, 1, 3, 3), {"group": WIDTH}),
        ((WIDTH, WIDTH, 3, 3), {"dilations": [2, 2]}),
        ((WIDTH, WIDTH, 3, 3), {"auto_pad": "SAME_UPPER"}),
    ],
)
def test_other_convolutions_stay_in_fp32(kernel: tuple[int, ...], attributes: dict[str, object]) -> None:
    model = graph_of(
        [node("Conv", ["x", "w"], "y", **attributes)],
        {"w": np.ones(kernel, np.float32)},
        shape=["batch", WIDTH, 7, 8],
    )

    assert not is_product(node_named(model, "tower.y/Conv"))


def test_convolutions_of_maps_of_any_size_stay_in_fp32() -> None:
    model = graph_of(
        [node("Conv", ["x", "w"], "y")], {"w": np.ones((4, 4, 3, 3), np.float32)}, shape=["batch", 4, "height", 8]
    )

    assert not is_product(node_named(model, "tower.y/Conv"))


def test_products_of_which_only_the_weight_has_eight_bits_stay() -> None:
    model = attention_like()
    quantise(model.graph, INT8_PAIR_SAFE, ranges=None)

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
