"""Every rule of the TensorRT lint finds what it is for, and leaves alone what TensorRT takes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calipso_export.lint import tensorrt_findings
from calipso_export.steps.lint import lint

FP32, FP16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
FP64, INT8, UINT8, INT64 = TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT64
FP8 = TensorProto.FLOAT8E4M3FN
# What a graph of one case takes in, under names of one letter; `b` has the same type as `x`.
INPUTS = {"x": FP32, "b": FP32, "h": FP16, "i": INT64, "u": UINT8, "d": FP64, "q": INT8, "c": TensorProto.BOOL}


@dataclasses.dataclass(frozen=True)
class Case:
    """One node `n`, whose inputs are `INPUTS` of the graph, or constants."""

    operator: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)


def constants_of(values: Mapping[str, Any]) -> list[onnx.TensorProto]:
    return [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in values.items()
    ]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 20,
) -> onnx.ModelProto:
    def values(types: Mapping[str, int]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()]

    graph = helper.make_graph(list(nodes), "crafted", values(inputs), values(outputs), list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def findings_of(case: Case, *, opset: int = 20) -> list[str]:
    node = helper.make_node(case.operator, case.inputs, case.outputs, name="n", **case.attributes)
    inputs = {name: kind for name, kind in INPUTS.items() if name in case.inputs}
    return tensorrt_findings(model_of([node], inputs, {}, constants_of(case.constants), opset=opset), Path())


AXES = {"k": np.array([0])}
SCALED = {"s": np.float32(0.5)}
RESIZE = {"r": np.ones(4, np.float32), "z": np.array([], np.float32)}
QUANTISE = ("x", "s", "z")
QUANTISED = {**SCALED, "z": np.int8(0)}
FP8_QUANTISED = {**SCALED, "z": helper.make_tensor("z", FP8, [], [0.0])}

TAKEN = {
    "Resize": Case("Resize", ("x", "z", "r"), {"mode": "linear", "antialias": 0}, RESIZE),
    "Resize of fp16 by an fp32 scale": Case("Resize", ("h", "", "r"), constants=RESIZE),
    "ReduceSum over constant axes": Case("ReduceSum", ("x", "k"), constants=AXES),
    "ReduceMax over all axes": Case("ReduceMax", ("x",)),
    "Squeeze": Case("Squeeze", ("x", "k"), constants=AXES),
    "Unsqueeze": Case("Unsqueeze", ("x", "k"), constants=AXES),
    "Slice": Case("Slice", ("x", "i", "i", "k"), constants=AXES),
    "Slice of all axes": Case("Slice", ("x", "i", "i")),
    "TopK": Case("TopK", ("x", "k"), {}, {"k": np.array([3839])}, ("y", "at")),
    "ScatterND": Case("ScatterND", ("x", "i", "b"), {"reduction": "none"}),
    "OneHot": Case("OneHot", ("i", "k", "v"), constants={"k": np.array(3), "v": np.zeros(2, np.float32)}),
    "LayerNormalization": Case("LayerNormalization", ("x", "b"), outputs=("y", "mean", "deviation")),
    "QuantizeLinear to int8": Case("QuantizeLinear", QUANTISE, constants=QUANTISED),
    "QuantizeLinear to fp8": Case("QuantizeLinear", QUANTISE, constants=FP8_QUANTISED),
    "DequantizeLinear": Case("DequantizeLinear", ("q", "s"), constants=SCALED),
    "Clip": Case("Clip", ("x",)),
    "Exp": Case("Exp", ("h",)),
    "Softmax": Case("Softmax", ("x",)),
    "Erf": Case("Erf", ("x",)),
    "Gelu": Case("Gelu", ("x",)),
    "Einsum": Case("Einsum", ("x", "b"), {"equation": "bij,bjk->bik"}),
    "Add of one type": Case("Add", ("x", "b")),
    "Where": Case("Where", ("c", "x", "b")),
    "Add of integers": Case("Add", ("i", "i")),
    "CastLike": Case("CastLike", ("x", "h")),
}

REFUSED = {
    "Attention": (Case("Attention", ("x", "x", "x")), "which most engines lack"),
    "ConvInteger": (Case("ConvInteger", ("q", "q")), "which TensorRT lacks: "),
    "MatMulInteger": (Case("MatMulInteger", ("q", "q")), "which TensorRT lacks: "),
    "QLinearMatMul": (
        Case("QLinearMatMul", ("q", "s", "z", "q", "s", "z", "s", "z"), constants=QUANTISED),
        "which TensorRT lacks: ",
    ),
    "DynamicQuantizeLinear": (
        Case("DynamicQuantizeLinear", ("x",), outputs=("y", "s", "z")),
        "which TensorRT lacks: ",
    ),
    "ScatterElements": (Case("ScatterElements", ("x", "i", "b")), "which is a plugin in TensorRT: "),
    "Resize, smoothed": (
        Case("Resize", ("x", "z", "r"), {"mode": "linear", "antialias": 1}, RESIZE),
        "whose antialias is 1: expected 0",
    ),
    "Resize, keeping proportions": (
        Case("Resize", ("x", "z", "r"), {"keep_aspect_ratio_policy": "not_larger"}, RESIZE),
        "whose keep_aspect_ratio_policy is not_larger: expected stretch",
    ),
    "ReduceMean": (Case("ReduceMean", ("x", "i")), "with computed axes: expected a constant"),
    "Squeeze": (Case("Squeeze", ("x", "i")), "with computed axes: expected a constant"),
    "Unsqueeze": (Case("Unsqueeze", ("x", "i")), "with computed axes: expected a constant"),
    "Slice": (Case("Slice", ("x", "i", "i", "i")), "with computed axes: expected a constant"),
    "TopK of many": (
        Case("TopK", ("x", "k"), {}, {"k": np.array([3840])}, ("y", "at")),
        "whose K is 3840: expected less than 3840",
    ),
    "TopK of a computed number": (
        Case("TopK", ("x", "i"), outputs=("y", "at")),
        "whose K is computed: expected a constant below 3840",
    ),
    "TopK in any order": (
        Case("TopK", ("x", "k"), {"sorted": 0}, {"k": np.array([3])}, ("y", "at")),
        "whose sorted is 0: expected 1",
    ),
    "ScatterND that adds": (
        Case("ScatterND", ("x", "i", "b"), {"reduction": "add"}),
        "whose reduction is add: expected none",
    ),
    "OneHot": (
        Case("OneHot", ("i", "i", "v"), constants={"v": np.zeros(2, np.float32)}),
        "with computed depth: expected a constant",
    ),
    "QuantizeLinear off zero": (
        Case("QuantizeLinear", QUANTISE, constants={**SCALED, "z": np.int8(3)}),
        "whose zero point z is not 0: expected symmetric quantisation",
    ),
    "QuantizeLinear to fp8 off zero": (
        Case("QuantizeLinear", QUANTISE, constants={**SCALED, "z": helper.make_tensor("z", FP8, [], [1.0])}),
        "whose zero point z is not 0: expected symmetric quantisation",
    ),
    "DequantizeLinear around what is computed": (
        Case("DequantizeLinear", ("q", "s", "q"), constants=SCALED),
        "whose zero point q is computed: expected a constant of zeros, or none",
    ),
    "DequantizeLinear by what is computed": (
        Case("DequantizeLinear", ("q", "x")),
        "whose scale x is computed: expected a constant",
    ),
    "Clip": (Case("Clip", ("i",)), "over int64: expected fp32, fp16 or bf16"),
    "Exp": (Case("Exp", ("i",)), "over int64: expected fp32, fp16 or bf16"),
    "Softmax": (Case("Softmax", ("i",)), "over int64: expected fp32, fp16 or bf16"),
    "Erf": (Case("Erf", ("i",)), "over int64: expected fp32, fp16 or bf16"),
    "Einsum in capitals": (
        Case("Einsum", ("x", "b"), {"equation": "bIj,bjk->bIk"}),
        "whose equation is bIj,bjk->bIk: expected lower-case letters and no ellipsis",
    ),
    "Einsum with an ellipsis": (
        Case("Einsum", ("x", "b"), {"equation": "...j,jk->...k"}),
        "whose equation is ...j,jk->...k: expected lower-case letters and no ellipsis",
    ),
}


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN)
def test_what_tensorrt_takes_is_left_alone(case: Case) -> None:
    assert findings_of(case) == []


@pytest.mark.parametrize(("case", "wrong"), REFUSED.values(), ids=REFUSED)
def test_what_tensorrt_refuses_is_found_once(case: Case, wrong: str) -> None:
    (finding,) = [
        found
        for found in findings_of(case, opset=23 if case.operator == "Attention" else 20)
        if found.startswith("node ")
    ]

    assert finding.startswith(f"node n is {case.operator}, {wrong}")


@pytest.mark.parametrize("value", [{"value_ints": [9999]}, {"value": numpy_helper.from_array(np.array([9999]))}])
def test_the_value_of_a_constant_node_is_read(value: Mapping[str, Any]) -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], **value),
        helper.make_node("TopK", ["x", "k"], ["y", "at"], name="n"),
    ]

    findings = tensorrt_findings(model_of(nodes, {"x": FP32}, {"y": FP32, "at": INT64}), Path())

    assert findings == ["node n is TopK, whose K is 9999: expected less than 3840"]


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "MatMul", "Gemm", "Conv"])
def test_two_float_types_at_one_node_are_found(operator: str) -> None:
    assert findings_of(Case(operator, ("x", "h"))) == [
        f"node n is {operator}, whose inputs are of fp16 and fp32: expected one float type"
    ]


def test_a_mean_of_a_layer_normalization_that_is_used_is_found() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "b"], ["y", "mean"], name="n"),
        helper.make_node("Relu", ["mean"], ["z"]),
    ]

    findings = tensorrt_findings(model_of(nodes, {"x": FP32, "b": FP32}, {"y": FP32, "z": FP32}), Path())

    assert findings == ["node n is LayerNormalization, whose output mean is used: expected the first one alone"]


def test_a_graph_inside_a_node_is_found() -> None:
    def branch(operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("inner", FP32, None)
        return helper.make_graph([helper.make_node(operator, ["x"], ["inner"])], operator, [], [output])

    node = helper.make_node("If", ["c"], ["y"], name="n", then_branch=branch("Relu"), else_branch=branch("Exp"))
    model = model_of([node], {"c": TensorProto.BOOL, "x": FP32}, {"y": FP32})

    assert tensorrt_findings(model, Path()) == [
        "node n is If, whose own graph cannot be checked: expected no control flow"
    ]


def test_gelu_before_opset_20_is_found(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, FP32, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Gelu", ["x"], ["y"])], "crafted", value[:1], value[1:])
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))

    (finding,) = lint(path)

    assert "No Op registered for Gelu with domain_version of 18" in finding


ZEROS_OR_NOT = st.lists(st.integers(-128, 127) | st.just(0), min_size=1, max_size=5)


@given(ZEROS_OR_NOT)
def test_any_zero_point_of_a_channel_that_is_not_0_is_found(points: list[int]) -> None:
    constants = {"s": np.ones(len(points), np.float32), "z": np.array(points, np.int8)}

    assert bool(findings_of(Case("QuantizeLinear", QUANTISE, constants=constants))) == any(points)


@given(st.lists(st.floats(width=32), min_size=1, max_size=5))
def test_any_scale_of_a_channel_that_is_not_positive_is_found(scales: list[float]) -> None:
    positive = all(scale > 0 and np.isfinite(scale) for scale in scales)

    found = findings_of(Case("DequantizeLinear", ("q", "s"), constants={"s": np.array(scales, np.float32)}))

    assert bool(found) == (not positive)


def external(path: Path, points: Sequence[int]) -> onnx.ModelProto:
    """A QuantizeLinear whose zero points lie beside the file, loaded without them."""
    constants = constants_of({"s": np.ones(len(points), np.float32), "z": np.array(points, np.int8)})
    model = model_of([helper.make_node("QuantizeLinear", QUANTISE, ["y"], name="n")], {"x": FP32}, {}, constants)
    onnx.save(model, str(path), save_as_external_data=True, location="a.data", size_threshold=0)
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize(("points", "count"), [((0, 0), 0), ((0, 1), 1)])
def test_zero_points_are_read_from_external_data(tmp_path: Path, points: Sequence[int], count: int) -> None:
    model = external(tmp_path / "a.onnx", points)
    before = model.SerializeToString(deterministic=True)

    assert len(tensorrt_findings(model, tmp_path)) == count
    assert model.SerializeToString(deterministic=True) == before


BYTES = "of uint8: expected only inputs and outputs of the graph, beside a Cast to fp32 or fp16"
DOUBLE = "of fp64: expected fp32, fp16 or bf16"


def cast(source: str, kind: int, made: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [made], to=kind, name=f"to {made}")


EDGES: Mapping[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "bytes that come in and are cast": (
        lambda: model_of([cast("u", FP16, "y")], {"u": UINT8}, {"y": FP16}),
        [],
    ),
    "bytes that are cast and go out": (
        lambda: model_of([cast("x", UINT8, "y")], {"x": FP32}, {"y": UINT8}),
        [],
    ),
    "bytes that are cast to integers": (
        lambda: model_of([cast("u", INT64, "y")], {"u": UINT8}, {"y": INT64}),
        [f"tensor u is {BYTES}"],
    ),
    "bytes that are computed with": (
        lambda: model_of([helper.make_node("Transpose", ["u"], ["y"], name="t")], {"u": UINT8}, {"y": UINT8}),
        [f"tensor u is {BYTES}", f"tensor y of node t (Transpose) is {BYTES}"],
    ),
    "bytes in the middle": (
        lambda: model_of([cast("x", UINT8, "m"), cast("m", FP32, "y")], {"x": FP32}, {"y": FP32}),
        [f"tensor m of node to m (Cast) is {BYTES}"],
    ),
    "a QuantizeLinear without a zero point, which gives bytes": (
        lambda: model_of(
            [
                helper.make_node("QuantizeLinear", ["x", "s"], ["m"], name="n"),
                helper.make_node("DequantizeLinear", ["m", "s"], ["y"]),
            ],
            {"x": FP32},
            {"y": FP32},
            constants_of(SCALED),
        ),
        [f"tensor m of node n (QuantizeLinear) is {BYTES}"],
    ),
    "a double input": (lambda: model_of([cast("d", FP32, "y")], {"d": FP64}, {"y": FP32}), [f"tensor d is {DOUBLE}"]),
    "a double constant": (
        lambda: model_of([cast("k", FP32, "y")], {}, {"y": FP32}, constants_of({"k": np.ones(2)})),
        [f"tensor k is {DOUBLE}"],
    ),
    "a double in between": (
        lambda: model_of([cast("x", FP64, "m"), cast("m", FP32, "y")], {"x": FP32}, {"y": FP32}),
        [f"tensor m of node to m (Cast) is {DOUBLE}"],
    ),
}


@pytest.mark.parametrize(("make", "findings"), EDGES.values(), ids=EDGES)
def test_bytes_stay_at_the_edge_and_doubles_outside(make: Callable[[], onnx.ModelProto], findings: list[str]) -> None:
    assert tensorrt_findings(make(), Path()) == findings


def test_a_graph_whose_types_are_unknown_is_found() -> None:
    (finding,) = findings_of(Case("Gelu", ("x",)), opset=18)

    assert finding.startswith("the type of tensor y cannot be inferred: node n is Gelu, expected ")
