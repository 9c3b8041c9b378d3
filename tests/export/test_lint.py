"""Every rule of the TensorRT lint finds what it is for, and leaves alone what TensorRT takes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lint_samples import BOOL, FP8, FP16, FP32, FP64, INT64, UINT8, Case, constants_of, model_of
from onnx import helper, numpy_helper

from calipso_export.choices import OPSETS
from calipso_export.lint import ALL, ERROR, WARNING, Finding, declared, tensorrt_findings
from calipso_export.lint.network import read_network
from calipso_export.lint.rule import Rule
from calipso_export.lint.rules import FIRST, RULES
from calipso_export.lint.targets import RTX, TARGETS, TENSORRT, before, since


def findings_of(case: Case) -> list[Finding]:
    return tensorrt_findings(case.model(), Path())


def told(model: onnx.ModelProto, folder: Path = Path()) -> list[tuple[str, str, str]]:
    """Rule, place and fault of every finding; once where releases differ in what to do."""
    return [*dict.fromkeys((found.rule, found.where, found.wrong) for found in tensorrt_findings(model, folder))]


AXES = {"k": np.array([0])}
SCALED = {"s": np.float32(0.5)}
RESIZE = {"r": np.ones(4, np.float32), "z": np.array([], np.float32)}
QUANTISE = ("x", "s", "z")
QUANTISED = {**SCALED, "z": np.int8(0)}
FP8_QUANTISED = {**SCALED, "z": helper.make_tensor("z", FP8, [], [0.0])}
KEYS = {"k": np.ones((1, 1, 50, 8), np.float16)}
# For what the newer parsers alone take.
NEWEST = 24

TAKEN = {
    "Resize": Case("Resize", ("x", "z", "r"), {"mode": "linear", "antialias": 0}, RESIZE),
    "Resize of fp16 by an fp32 scale": Case("Resize", ("h", "", "r"), constants=RESIZE),
    "ReduceSum over constant axes": Case("ReduceSum", ("x", "k"), constants=AXES),
    "ReduceMax over all axes": Case("ReduceMax", ("x",)),
    "Squeeze": Case("Squeeze", ("x", "k"), constants=AXES),
    "Unsqueeze": Case("Unsqueeze", ("x", "k"), constants=AXES),
    "Slice": Case("Slice", ("x", "i", "i", "k"), constants=AXES),
    "Slice of computed axes": Case("Slice", ("x", "i", "i", "i")),
    "Slice of all axes": Case("Slice", ("x", "i", "i")),
    "TopK": Case("TopK", ("x", "k"), {}, {"k": np.array([3839])}, ("y", "at")),
    "ScatterND": Case("ScatterND", ("x", "i", "b")),
    "ScatterElements": Case("ScatterElements", ("x", "i", "b"), {"reduction": "none"}),
    "Squeeze of a fixed shape": Case("Squeeze", ("x",), shape=(1, 4)),
    "Pad": Case("Pad", ("x", "i", "", "k"), constants=AXES),
    "Resize by sizes of all axes": Case(
        "Resize", ("x", "", "", "s"), {"axes": [0, 1]}, {"s": np.array([2, 16])}, shape=("batch", 8)
    ),
    "Resize by computed scales": Case("Resize", ("x", "", "b"), {"axes": [0, 1]}),
    "MaxPool": Case("MaxPool", ("x",), {"kernel_shape": [2, 2], "dilations": [1, 1]}),
    "BatchNormalization": Case("BatchNormalization", ("x", "b", "b", "b", "b"), {"training_mode": 0}),
    "Dropout": Case("Dropout", ("x", "", "k"), constants={"k": np.array(False)}),
    "Pow": Case("Pow", ("x", "b")),
    "MatMul": Case("MatMul", ("h", "h")),
    "OneHot": Case("OneHot", ("i", "k", "v"), constants={"k": np.array(3), "v": np.zeros(2, np.float32)}),
    "LayerNormalization": Case("LayerNormalization", ("x", "b"), outputs=("y", "", "")),
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

# Graphs that a rule finds: its name, what is wrong, and the targets, which are all where none are given.
REFUSED: Mapping[str, tuple[Case, str, str] | tuple[Case, str, str, tuple[str, ...]]] = {
    "Attention": (
        Case("Attention", ("x", "x", "x"), opset=NEWEST),
        "operator-supported",
        "the parser has no importer for it",
        before(10, 14),
    ),
    "RMSNormalization": (
        Case("RMSNormalization", ("x", "b"), opset=NEWEST),
        "operator-supported",
        "the parser has no importer for it",
        before(10, 15),
    ),
    "Swish": (
        Case("Swish", ("x",), opset=NEWEST),
        "operator-supported",
        "the parser has no importer for it",
        before(11, 0),
    ),
    "an Attention that gives its keys": (
        Case("Attention", ("x", "x", "x", "", "b", "b"), outputs=("y", "keys", "values"), opset=NEWEST),
        "attention-outputs",
        "it has the further outputs keys, values",
        since(10, 14),
    ),
    "an Attention that goes on": (
        Case("Attention", ("x", "x", "x", "", "b", "b"), opset=NEWEST),
        "attention-past",
        "past_key and past_value given",
        since(10, 14),
    ),
    "an Attention with a softcap": (
        Case("Attention", ("x", "x", "x"), {"softcap": 50.0}, opset=NEWEST),
        "attention-softcap",
        "softcap is 50.0",
        since(10, 14),
    ),
    "an Attention with a Softmax in fp32": (
        Case("Attention", ("h", "h", "h"), {"softmax_precision": 1}, opset=NEWEST),
        "attention-attributes",
        "softmax_precision is given",
        since(10, 14),
    ),
    "an Attention of large heads": (
        Case("Attention", ("x", "b", "b"), opset=NEWEST, shape=("batch", 1, 50, 512)),
        "attention-head",
        "its heads have 512 channels",
        since(10, 14),
    ),
    "an Attention of large heads, in 3D": (
        Case(
            "Attention", ("x", "b", "b"), {"q_num_heads": 2, "kv_num_heads": 2}, opset=NEWEST, shape=("batch", 5, 1024)
        ),
        "attention-head",
        "its heads have 512 channels",
        since(10, 14),
    ),
    "an Attention in fp32": (
        Case("Attention", ("x", "b", "b"), opset=NEWEST),
        "attention-kernel",
        "it is over fp32",
        RTX,
    ),
    "an Attention of small heads": (
        Case("Attention", ("h", "k", "k"), opset=NEWEST, constants=KEYS, shape=("batch", 1, 50, 8)),
        "attention-kernel",
        "its heads have 8 channels",
        RTX,
    ),
    "an Attention whose queries are its keys": (
        Case("Attention", ("h", "h", "k"), opset=NEWEST, constants=KEYS),
        "attention-kernel",
        "h is both queries and keys",
        RTX,
    ),
    "Unique": (Case("Unique", ("x",)), "operator-supported", "the parser has no importer for it"),
    "ConvInteger": (Case("ConvInteger", ("q", "q")), "integer-operator", "the parser has no importer for it"),
    "MatMulInteger": (Case("MatMulInteger", ("q", "q")), "integer-operator", "the parser has no importer for it"),
    "QLinearMatMul": (
        Case("QLinearMatMul", ("q", "s", "z", "q", "s", "z", "s", "z"), constants=QUANTISED),
        "integer-operator",
        "the parser has no importer for it",
    ),
    "DynamicQuantizeLinear": (
        Case("DynamicQuantizeLinear", ("x",), outputs=("y", "s", "z")),
        "integer-operator",
        "the parser has no importer for it",
    ),
    "ScatterElements that adds": (
        Case("ScatterElements", ("x", "i", "b"), {"reduction": "add"}),
        "scatter-elements-plugin",
        "reduction is add",
    ),
    "ScatterND that says what it does not do": (
        Case("ScatterND", ("x", "i", "b"), {"reduction": "none"}),
        "scatter-nd-reduction",
        "reduction is given",
        before(10, 9),
    ),
    "Resize, smoothed": (
        Case("Resize", ("x", "z", "r"), {"mode": "linear", "antialias": 1}, RESIZE),
        "resize-antialias",
        "antialias is 1",
    ),
    "Resize, keeping proportions": (
        Case("Resize", ("x", "z", "r"), {"keep_aspect_ratio_policy": "not_larger"}, RESIZE),
        "resize-aspect-ratio",
        "keep_aspect_ratio_policy is not_larger",
    ),
    "Resize, cropping": (
        Case("Resize", ("x", "z", "r"), {"coordinate_transformation_mode": "half_pixel_symmetric"}, RESIZE),
        "resize-coordinates",
        "coordinate_transformation_mode is half_pixel_symmetric",
    ),
    "Resize by computed scales of some axes": (
        Case("Resize", ("x", "", "b"), {"axes": [2, 3]}),
        "resize-scales",
        "its scales are computed (b) and for the axes [2, 3] alone",
    ),
    "Resize by constant sizes of some axes of a dynamic batch": (
        Case("Resize", ("x", "", "", "s"), {"axes": [2, 3]}, {"s": np.array([16, 16])}, shape=("batch", 3, 8, 8)),
        "resize-sizes",
        "its sizes are constant (s) and for the axes [2, 3] alone, and the axes [0] are dynamic",
        RTX,
    ),
    "Resize, cubic, of channels": (
        Case(
            "Resize", ("x", "z", "r"), {"mode": "cubic"}, {**RESIZE, "r": np.float32([1, 2, 2, 2])}, shape=(1, 3, 8, 8)
        ),
        "resize-axes",
        "its mode is cubic, and it resizes the axes [1]",
    ),
    "Resize, linear, of a batch": (
        Case("Resize", ("x", "", "", "s"), {"mode": "linear"}, {"s": np.array([2, 3, 8, 8])}, shape=(1, 3, 8, 8)),
        "resize-axes",
        "its mode is linear, and it resizes the axes [0]",
    ),
    "Resize, cubic": (Case("Resize", ("x", "z", "r"), {"mode": "cubic"}, RESIZE), "resize-cubic", "mode is cubic"),
    "ReduceMean": (Case("ReduceMean", ("x", "i")), "constant-axes", "axes is computed (i)"),
    "Squeeze": (Case("Squeeze", ("x", "i")), "constant-axes", "axes is computed (i)"),
    "Unsqueeze": (Case("Unsqueeze", ("x", "i")), "constant-axes", "axes is computed (i)"),
    "Pad": (Case("Pad", ("x", "i", "", "i")), "constant-axes", "axes is computed (i)", before(10, 4)),
    "Squeeze of whatever is 1": (
        Case("Squeeze", ("x",), shape=("batch", 1)),
        "squeeze-axes",
        "it has no axes, and its input has a dynamic shape",
        before(11, 5),
    ),
    "TopK of many": (
        Case("TopK", ("x", "k"), {}, {"k": np.array([3840])}, ("y", "at")),
        "topk-k",
        "K is 3840",
        TENSORRT,
    ),
    "TopK of more": (
        Case("TopK", ("x", "k"), {}, {"k": np.array([3841])}, ("y", "at")),
        "topk-k",
        "K is 3841",
    ),
    "TopK of a computed number": (Case("TopK", ("x", "i"), outputs=("y", "at")), "topk-k", "K is computed (i)"),
    "TopK in any order": (
        Case("TopK", ("x", "k"), {"sorted": 0}, {"k": np.array([3])}, ("y", "at")),
        "topk-sorted",
        "sorted is 0",
        TENSORRT,
    ),
    "OneHot": (
        Case("OneHot", ("i", "i", "v"), constants={"v": np.zeros(2, np.float32)}),
        "onehot-depth",
        "depth is computed (i)",
        TENSORRT,
    ),
    "LayerNormalization with a mean": (
        Case("LayerNormalization", ("x", "b"), outputs=("y", "mean")),
        "first-output",
        "it has the further outputs mean",
    ),
    "MaxPool with positions": (
        Case("MaxPool", ("x",), {"kernel_shape": [2, 2]}, outputs=("y", "at")),
        "first-output",
        "it has the further outputs at",
    ),
    "MaxPool with holes": (
        Case("MaxPool", ("x",), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        "pool-dilations",
        "dilations are [2, 2]",
    ),
    "BatchNormalization that learns": (
        Case("BatchNormalization", ("x", "b", "b", "b", "b"), {"training_mode": 1}, outputs=("y", "mean", "variance")),
        "inference-mode",
        "training_mode is 1",
    ),
    "Dropout that drops": (
        Case("Dropout", ("x", "", "k"), constants={"k": np.array(True)}),
        "inference-mode",
        "training_mode is true",
    ),
    "Dropout that may drop": (
        Case("Dropout", ("x", "", "c")),
        "inference-mode",
        "training_mode is computed (c)",
    ),
    "QuantizeLinear off zero": (
        Case("QuantizeLinear", QUANTISE, constants={**SCALED, "z": np.int8(3)}),
        "symmetric",
        "its zero point z is not 0",
    ),
    "QuantizeLinear to fp8 off zero": (
        Case("QuantizeLinear", QUANTISE, constants={**SCALED, "z": helper.make_tensor("z", FP8, [], [1.0])}),
        "symmetric",
        "its zero point z is not 0",
    ),
    "DequantizeLinear around what is computed": (
        Case("DequantizeLinear", ("q", "s", "q"), constants=SCALED),
        "symmetric",
        "its zero point q is computed",
    ),
    "DequantizeLinear by what is computed": (
        Case("DequantizeLinear", ("q", "x")),
        "positive-scale",
        "its scale x is computed",
        TENSORRT,
    ),
    "DequantizeLinear by what is negative": (
        Case("DequantizeLinear", ("q", "s"), constants={"s": np.float32(-0.5)}),
        "positive-scale",
        "its scale s has values that are not positive: -0.5 is the least",
    ),
    "Clip": (Case("Clip", ("i",)), "float-input", "it is over int64", TENSORRT),
    "Exp": (Case("Exp", ("i",)), "float-input", "it is over int64", TENSORRT),
    "Softmax": (Case("Softmax", ("i",)), "float-input", "it is over int64", TENSORRT),
    "Erf": (Case("Erf", ("i",)), "float-input", "it is over int64", TENSORRT),
    "MatMul": (Case("MatMul", ("i", "i")), "float-input", "it is over int64", TENSORRT),
    "Einsum of integers": (
        Case("Einsum", ("i", "i"), {"equation": "ij,jk->ik"}),
        "operator-types",
        "it is over int64",
        RTX,
    ),
    "Pow by an integer": (Case("Pow", ("x", "i")), "float-input", "i is int64", before(10, 8)),
    "Cast of what is quantised": (Case("Cast", ("q",), {"to": FP32}), "cast-types", "it converts int8", TENSORRT),
    "Cast to fp8": (Case("Cast", ("x",), {"to": FP8}), "cast-types", "it converts fp8"),
    "Einsum in capitals": (
        Case("Einsum", ("x", "b"), {"equation": "bIj,bjk->bIk"}),
        "einsum-equation",
        "its equation is bIj,bjk->bIk",
    ),
    "Einsum with an ellipsis": (
        Case("Einsum", ("x", "b"), {"equation": "...j,jk->...k"}),
        "einsum-equation",
        "its equation is ...j,jk->...k",
        before(10, 12),
    ),
    "Einsum of a diagonal": (
        Case("Einsum", ("x",), {"equation": "ii->i"}),
        "einsum-equation",
        "its equation is ii->i",
        before(10, 12),
    ),
    "BatchNormalization of two types": (
        Case("BatchNormalization", ("h", "x", "x", "x", "x")),
        "one-float-type",
        "its inputs are of fp16 and fp32",
        before(10, 7),
    ),
}


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN)
def test_what_tensorrt_takes_is_left_alone(case: Case) -> None:
    assert findings_of(case) == []


# Rules that some of these graphs break besides: old parsers lack Attention, training has outputs of its own.
BESIDE = {
    "Attention": {"operator-supported", "attention-past", "attention-kernel"},
    "BatchNormalization": {"first-output"},
    "Resize": {"resize-cubic"},
    **{operator: {"operator-types"} for operator in ("Exp", "Softmax", "Erf", "MatMul")},
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_what_a_release_refuses_is_found_once_and_for_that_release_alone(
    refused: tuple[Case, str, str] | tuple[Case, str, str, tuple[str, ...]],
) -> None:
    case, rule, wrong, *targets = refused

    found = [each for each in findings_of(case) if each.where == f"node n ({case.operator})"]

    ours = [each for each in found if (each.rule, each.wrong) == (rule, wrong)]
    assert {each.rule for each in found if each not in ours} <= BESIDE.get(case.operator, set())
    names = [name for each in ours for name in each.targets]
    assert sorted(names, key=ALL.index) == list(targets[0] if targets else ALL)


@pytest.mark.parametrize("rule", [*FIRST, *RULES], ids=lambda rule: f"{rule.name} {' '.join(rule.targets)}")
def test_every_rule_of_the_table_finds_a_graph_of_this_file(rule: Rule) -> None:
    models = [case.model() for case, *_ in REFUSED.values()] + [make() for make in OTHERS.values()]

    assert any(list(rule.findings(read_network(model, Path()))) for model in models)


@pytest.mark.parametrize("rule", [*FIRST, *RULES], ids=lambda rule: f"{rule.name} {' '.join(rule.targets)}")
def test_every_rule_says_what_to_do_and_where_it_is_written(rule: Rule) -> None:
    assert rule.fix
    assert rule.source
    assert rule.severity in (ERROR, WARNING)
    assert set(rule.targets) <= set(ALL)


@pytest.mark.parametrize(
    ("opset", "refusing"),
    [
        (8, ALL),
        (9, ()),
        (18, ()),
        (20, ()),
        (21, ALL[:1]),
        (22, ALL[:1]),
        (23, ALL[:2]),
        (24, ALL[:2]),
        (25, ALL[:4]),
        (26, ALL),
    ],
)
def test_each_parser_takes_opsets_up_to_its_own(opset: int, refusing: tuple[str, ...]) -> None:
    found = findings_of(Case("Relu", ("x",), opset=opset))

    assert {each.rule for each in found} <= {"opset"}
    assert tuple(name for each in found for name in each.targets) == refusing


@pytest.mark.parametrize("opset", OPSETS)
def test_a_graph_declares_the_targets_whose_parser_takes_its_opset(opset: int) -> None:
    assert declared(opset) == tuple(name for name in ALL if TARGETS[name].max_opset >= opset)
    assert tensorrt_findings(Case("Relu", ("x",), opset=opset).model(), Path(), targets=declared(opset)) == []


def test_a_scatter_that_adds_is_refused_by_every_release_for_a_reason_of_its_own() -> None:
    old, new = findings_of(Case("ScatterND", ("x", "i", "b"), {"reduction": "add"}))

    assert (old.wrong, old.targets) == ("reduction is given", before(10, 9))
    assert (new.wrong, new.targets) == ("reduction is add", since(10, 9))


@pytest.mark.parametrize("operator", ["Squeeze", "Unsqueeze"])
def test_computed_axes_that_only_old_parsers_refuse_are_a_warning_for_the_new_ones(operator: str) -> None:
    old, new = findings_of(Case(operator, ("x", "i")))

    assert (old.severity, old.targets) == (ERROR, (*before(10, 7), *RTX))
    assert (new.severity, new.targets) == (WARNING, since(10, 7, among=TENSORRT))


@pytest.mark.parametrize("name", ["Resize, cubic", "ScatterElements that adds", "TopK of a computed number"])
def test_what_is_built_all_the_same_is_a_warning(name: str) -> None:
    found = tensorrt_findings(REFUSED[name][0].model(), Path(), targets=TENSORRT)

    assert {each.severity for each in found} == {WARNING}


def test_only_the_targets_asked_for_are_told() -> None:
    model = REFUSED["Einsum with an ellipsis"][0].model()

    assert tensorrt_findings(model, Path(), targets=ALL[1:]) == []
    assert [each.targets for each in tensorrt_findings(model, Path(), targets=ALL[:2])] == [ALL[:1]]


def test_a_finding_is_one_sentence_with_node_fault_fix_targets_and_source() -> None:
    sentences = [str(each) for each in findings_of(REFUSED["Pow by an integer"][0])]

    place = "node n (Pow): i is int64"
    assert sentences == [
        f"{place}; cast to fp32, fp16 or bf16 (tensorrt-10.3; onnx-tensorrt docs/Changelog.md (10.8, 10.12))"
    ]


@pytest.mark.parametrize("value", [{"value_ints": [9999]}, {"value": numpy_helper.from_array(np.array([9999]))}])
def test_the_value_of_a_constant_node_is_read(value: Mapping[str, Any]) -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], **value),
        helper.make_node("TopK", ["x", "k"], ["y", "at"], name="n"),
    ]

    model = model_of(nodes, {"x": FP32}, {"y": FP32, "at": INT64})

    assert told(model) == [("topk-k", "node n (TopK)", "K is 9999")]


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "MatMul", "Gemm", "Conv"])
def test_two_float_types_at_one_node_are_found(operator: str) -> None:
    assert told(Case(operator, ("x", "h")).model()) == [
        ("one-float-type", f"node n ({operator})", "its inputs are of fp16 and fp32")
    ]


def with_a_graph_inside() -> onnx.ModelProto:
    def branch(operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("inner", FP32, None)
        return helper.make_graph([helper.make_node(operator, ["x"], ["inner"])], operator, [], [output])

    node = helper.make_node("If", ["c"], ["y"], name="n", then_branch=branch("Relu"), else_branch=branch("Exp"))
    return model_of([node], {"c": BOOL, "x": FP32}, {"y": FP32})


def test_a_graph_inside_a_node_is_found() -> None:
    assert told(with_a_graph_inside()) == [
        ("no-control-flow", "node n (If)", "it has a graph of its own, which is not checked")
    ]


def of_another_domain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gelu", ["x"], ["m"], name="own", domain="com.microsoft"),
        helper.make_node("Unique", ["m"], ["y"], name="n"),
    ]
    return model_of(nodes, {"x": FP32}, {"y": FP32})


def test_behind_an_operator_of_another_domain_nothing_is_known() -> None:
    assert told(of_another_domain()) == [
        ("standard-operators", "node own (com.microsoft.Gelu)", "it is no standard operator")
    ]


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


def cast(source: str, kind: int, made: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [made], to=kind, name=f"to {made}")


EDGES: Mapping[str, tuple[Callable[[], onnx.ModelProto], list[tuple[str, str, str]]]] = {
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
        [("bytes-at-the-edge", "tensor u", "it is of uint8")],
    ),
    "bytes that are computed with": (
        lambda: model_of([helper.make_node("Transpose", ["u"], ["y"], name="t")], {"u": UINT8}, {"y": UINT8}),
        [
            ("bytes-at-the-edge", "tensor u", "it is of uint8"),
            ("bytes-at-the-edge", "tensor y of node t (Transpose)", "it is of uint8"),
        ],
    ),
    "bytes in the middle": (
        lambda: model_of([cast("x", UINT8, "m"), cast("m", FP32, "y")], {"x": FP32}, {"y": FP32}),
        [("bytes-at-the-edge", "tensor m of node to m (Cast)", "it is of uint8")],
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
        [("bytes-at-the-edge", "tensor m of node n (QuantizeLinear)", "it is of uint8")],
    ),
    "a double input": (
        lambda: model_of([cast("d", FP32, "y")], {"d": FP64}, {"y": FP32}),
        [("no-double", "tensor d", "it is of fp64")],
    ),
    "a double constant": (
        lambda: model_of([cast("k", FP32, "y")], {}, {"y": FP32}, constants_of({"k": np.ones(2)})),
        [("no-double", "tensor k", "it is of fp64")],
    ),
    "a double in between": (
        lambda: model_of([cast("x", FP64, "m"), cast("m", FP32, "y")], {"x": FP32}, {"y": FP32}),
        [("no-double", "tensor m of node to m (Cast)", "it is of fp64")],
    ),
}


@pytest.mark.parametrize(("make", "findings"), EDGES.values(), ids=EDGES)
def test_bytes_stay_at_the_edge_and_doubles_outside(
    make: Callable[[], onnx.ModelProto], findings: list[tuple[str, str, str]]
) -> None:
    assert told(make()) == findings


def test_a_graph_whose_types_are_unknown_is_found() -> None:
    ((rule, where, wrong),) = told(Case("Gelu", ("x",), opset=18).model())

    assert (rule, where) == ("known-types", "the graph")
    assert wrong.startswith("the type of tensor y cannot be inferred: node n is Gelu, expected ")


def attention() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "b"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "b"], ["y"]),
    ]
    return model_of(nodes, {"x": FP32, "b": FP32}, {"y": FP32})


# What is no one node of a kind.
OTHERS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "an old opset": lambda: Case("Relu", ("x",), opset=8).model(),
    "an operator of another domain": of_another_domain,
    "an unknown type": lambda: Case("Gelu", ("x",), opset=18).model(),
    "a graph inside": with_a_graph_inside,
    "an attention, of which test_lint_attention has more": attention,
    "two float types": lambda: Case("Add", ("x", "h")).model(),
    "a scatter that adds": lambda: Case("ScatterND", ("x", "i", "b"), {"reduction": "add"}).model(),
    "a type that TensorRT lacks": lambda: Case("Identity", ("t",)).model(),
    **{name: make for name, (make, found) in EDGES.items() if found},
}


def test_a_type_that_tensorrt_lacks_is_found() -> None:
    assert told(OTHERS["a type that TensorRT lacks"]()) == [
        ("tensor-types", "tensor t", "it is of int16"),
        ("tensor-types", "tensor y of node n (Identity)", "it is of int16"),
    ]
