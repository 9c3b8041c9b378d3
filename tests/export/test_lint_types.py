"""Types of every tensor are inferred, and heavy work is listed by the type that it is done in."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from calipso_export.choices import OPSETS
from calipso_export.lint import Work, float_work, tensor_types
from calipso_runtime.errors import ModelError

FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
QUANTISED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def model_of(
    nodes: Sequence[onnx.NodeProto],
    *,
    kind: int = TensorProto.FLOAT,
    made: int | None = None,
    constants: Sequence[onnx.TensorProto] = (),
    opset: int = 20,
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", kind, ["batch", 4])
    y = helper.make_tensor_value_info("y", made or kind, None)
    graph = helper.make_graph(list(nodes), "crafted", [x], [y], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def without_bytes(name: str, kind: int, *dims: int) -> onnx.TensorProto:
    """Weights as they are loaded without external data."""
    return onnx.TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)


def product(name: str, x: str, weight: str, made: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [x, weight], [made], name=name)


def dequantised(source: str) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [source, "s", "z"], [f"{source} back"])


def test_inputs_constants_and_what_nodes_make_have_a_type() -> None:
    nodes = [product("first", "x", "w", "m"), helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT16)]
    model = model_of(nodes, made=TensorProto.FLOAT16, constants=[without_bytes("w", TensorProto.FLOAT, 4, 4)])

    assert tensor_types(model) == {
        "x": TensorProto.FLOAT,
        "w": TensorProto.FLOAT,
        "m": TensorProto.FLOAT,
        "y": TensorProto.FLOAT16,
    }


def test_weights_beyond_2_gb_need_not_be_there() -> None:
    model = model_of([product("n", "x", "w", "y")], constants=[without_bytes("w", TensorProto.FLOAT, 4, 2**40)])

    assert tensor_types(model)["y"] == TensorProto.FLOAT


def test_axes_that_lie_in_external_data_need_not_be_there() -> None:
    nodes = [helper.make_node("Unsqueeze", ["x", "axes"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    model = model_of(nodes, constants=[without_bytes("axes", TensorProto.INT64, 1)])

    assert tensor_types(model)["m"] == TensorProto.FLOAT


def test_an_output_left_out_has_no_type() -> None:
    node = helper.make_node("LayerNormalization", ["x", "x"], ["y", "", "deviation"])

    assert set(tensor_types(model_of([node]))) == {"x", "y", "deviation"}


def test_a_tensor_that_cannot_be_inferred_is_named() -> None:
    nodes = [helper.make_node("Gelu", ["x"], ["m"], name="new"), helper.make_node("Relu", ["m"], ["y"])]

    with pytest.raises(ModelError, match=r"the type of tensor m cannot be inferred: node new is Gelu, expected "):
        tensor_types(model_of(nodes, opset=18))


def test_an_output_declared_with_another_type_is_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="n")

    with pytest.raises(ModelError, match=r"cannot be inferred: .*Relu.* differs from existing elem type"):
        tensor_types(model_of([node], made=TensorProto.FLOAT16))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", FLOATS)
def test_heavy_work_has_the_type_of_its_first_input(name: str, opset: int) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"], name="a"),
        helper.make_node("Relu", ["g"], ["r"], name="light"),
        product("b", "r", "w", "m"),
        helper.make_node("Unsqueeze", ["m", "axes"], ["u"]),
        helper.make_node("Conv", ["u", "k"], ["y"], name="c"),
    ]
    constants = [
        without_bytes("w", FLOATS[name], 4, 4),
        without_bytes("k", FLOATS[name], 4, 4, 1),
        helper.make_tensor("axes", TensorProto.INT64, [1], [2]),
    ]

    found = float_work(model_of(nodes, kind=FLOATS[name], constants=constants, opset=opset))

    assert found == [
        Work(node=node, operator=operator, type=name, quantised=(None, None))
        for node, operator in (("a", "Gemm"), ("b", "MatMul"), ("c", "Conv"))
    ]


@pytest.mark.parametrize("quantised", QUANTISED)
@pytest.mark.parametrize("name", FLOATS)
def test_work_after_a_dequantize_linear_names_what_that_reads(name: str, quantised: str) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        dequantised("q"),
        dequantised("w"),
        product("both", "q back", "w back", "m"),
        product("weights alone", "m", "w back", "y"),
    ]
    constants = [
        helper.make_tensor("s", FLOATS[name], [], [0.5]),
        helper.make_tensor("z", QUANTISED[quantised], [], [0]),
        without_bytes("w", QUANTISED[quantised], 4, 4),
    ]

    both, alone = float_work(model_of(nodes, kind=FLOATS[name], constants=constants))

    assert both == Work(node="both", operator="MatMul", type=name, quantised=(quantised, quantised))
    assert alone == Work(node="weights alone", operator="MatMul", type=name, quantised=(None, quantised))


def test_all_heavy_work_of_an_export_is_fp32(bundle: Path) -> None:
    work = float_work(onnx.load(bundle / "model.onnx"))

    assert {each.operator for each in work} >= {"Conv", "MatMul"}
    assert {(each.type, each.quantised) for each in work} == {("fp32", (None, None))}
