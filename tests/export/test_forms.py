"""The forms: each changes what it is for, leaves what only looks like it, and keeps every answer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from export_samples import crafted_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from calipso_export.forms import ORT_FORMS, PORTABLE_FORMS
from calipso_export.forms.attention_op import fuse_attention
from calipso_export.forms.attention_scale import fold_attention_scale
from calipso_export.forms.depthwise import depthwise_per_kernel
from calipso_export.forms.gelu_op import fuse_gelu
from calipso_export.forms.linear_as_conv import linear_as_conv
from calipso_export.forms.patches import patches_as_rows
from calipso_export.forms.separate_projections import separate_projections
from calipso_runtime.graph_file import MODEL_FILE, ORT_MODEL_FILE

WIDTH, ROWS, HEADS = 32, 6, 4
RNG = np.random.default_rng(0)
Arrays = Mapping[str, np.ndarray]


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def graph_of(
    nodes: Sequence[onnx.NodeProto], arrays: Arrays, *, shape: Sequence[int | str], result: str = "y"
) -> onnx.ModelProto:
    """See `crafted_graph`; with every shape inferred, as torch's exporter gives it."""
    return onnx.shape_inference.infer_shapes(crafted_graph(nodes, arrays, shape=shape, result=result))


def changed(model: onnx.ModelProto, *forms: Callable[[ir.Graph], int]) -> tuple[int, onnx.ModelProto]:
    """How many places the last form changed, and the graph after all of them."""
    graph = ir.from_proto(model)
    count = 0
    for form in forms:
        count = form(graph.graph)
    return count, ir.to_proto(graph)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    return found


def assert_same_answers(before: onnx.ModelProto, after: onnx.ModelProto, *shape: int) -> None:
    for batch in (1, 2, 5):
        x = array(batch, *shape)
        np.testing.assert_allclose(answer(after, x), answer(before, x), atol=3e-5, rtol=1e-4)


def node(operator: str, inputs: Sequence[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


def scaled(factor: np.ndarray, *, also_read: bool = False) -> onnx.ModelProto:
    """A linear layer whose result is multiplied."""
    nodes = [
        node("MatMul", ["x", "w"], "product"),
        node("Add", ["product", "b"], "linear"),
        node("Mul", ["linear", "c"], "scaled"),
        node("Add", ["scaled", "linear"], "y") if also_read else node("Identity", ["scaled"], "y"),
    ]
    arrays = {"w": array(WIDTH, 8), "b": array(8), "c": factor}
    return graph_of(nodes, arrays, shape=["batch", ROWS, WIDTH])


def test_a_scale_behind_a_linear_layer_goes_into_its_weights() -> None:
    before = scaled(np.float32(0.125))

    count, after = changed(before, fold_attention_scale)

    assert (count, operators(after)["Mul"]) == (1, 0)
    assert_same_answers(before, after, ROWS, WIDTH)


def test_a_scale_of_one_output_of_a_split_leaves_the_other_columns() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "product"),
        node("Add", ["product", "b"], "linear"),
        helper.make_node("Split", ["linear"], ["q", "k", "v"], axis=2, num_outputs=3),
        node("Mul", ["k", "c"], "scaled"),
        node("Concat", ["q", "scaled", "v"], "y", axis=2),
    ]
    before = graph_of(
        nodes, {"w": array(WIDTH, 24), "b": array(24), "c": np.float32(0.3)}, shape=["batch", ROWS, WIDTH]
    )

    count, after = changed(before, fold_attention_scale)

    assert count == 1
    assert_same_answers(before, after, ROWS, WIDTH)


@pytest.mark.parametrize(
    "before", [scaled(np.float32(0.125), also_read=True), scaled(array(8))], ids=["read twice", "no scalar"]
)
def test_a_scale_that_others_do_not_see_or_that_is_none_stays(before: onnx.ModelProto) -> None:
    count, after = changed(before, fold_attention_scale)

    assert (count, operators(after)) == (0, operators(before))


def gelu(*, divisor: float = np.sqrt(2), half: float = 0.5) -> onnx.ModelProto:
    nodes = [
        node("Div", ["x", "root"], "divided"),
        node("Erf", ["divided"], "erf"),
        node("Add", ["erf", "one"], "shifted"),
        node("Mul", ["half", "shifted"], "gate"),
        node("Mul", ["x", "gate"], "y"),
    ]
    arrays = {"root": np.float32(divisor), "one": np.float32(1), "half": np.float32(half)}
    return graph_of(nodes, arrays, shape=["batch", WIDTH])


def quick_gelu(second: str = "x") -> onnx.ModelProto:
    nodes = [
        node("Mul", ["x", "alpha"], "scaled"),
        node("Sigmoid", ["scaled"], "gate"),
        node("Mul", [second, "gate"], "y"),
    ]
    return graph_of(nodes, {"alpha": np.float32(1.702), "other": array(WIDTH)}, shape=["batch", WIDTH])


@pytest.mark.parametrize(("before", "operator"), [(gelu(), "Gelu"), (quick_gelu(), "QuickGelu")])
def test_an_activation_becomes_one_operator(before: onnx.ModelProto, operator: str) -> None:
    count, after = changed(before, fuse_gelu)

    assert (count, operators(after)) == (1, Counter({operator: 1}))
    assert_same_answers(before, after, WIDTH)


@pytest.mark.parametrize("before", [gelu(divisor=1.5), gelu(half=0.4), quick_gelu("other")])
def test_what_only_looks_like_an_activation_stays(before: onnx.ModelProto) -> None:
    count, after = changed(before, fuse_gelu)

    assert (count, operators(after)) == (0, operators(before))


def attention(
    *,
    keys_turned: tuple[int, ...] = (0, 2, 3, 1),
    softmax_read_twice: bool = False,
    merge: tuple[int, ...] = (0, ROWS, WIDTH),
) -> onnx.ModelProto:
    head = WIDTH // HEADS
    nodes = [node("MatMul", ["x", f"w_{name}"], name) for name in "qkv"]
    nodes += [node("Reshape", [name, "split"], f"{name}_split") for name in "qkv"]
    nodes += [
        node("Transpose", ["q_split"], "q_heads", perm=[0, 2, 1, 3]),
        node("Transpose", ["k_split"], "k_heads", perm=list(keys_turned)),
        node("Transpose", ["v_split"], "v_heads", perm=[0, 2, 1, 3]),
        node("MatMul", ["q_heads", "k_heads"], "scores"),
        node("Softmax", ["scores"], "weights", axis=-1),
        node("MatMul", ["weights", "v_heads"], "weighted"),
        node("Transpose", ["weighted"], "turned", perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "merge"], "merged"),
        *([node("ReduceMax", ["weights"], "peak", keepdims=0)] if softmax_read_twice else []),
        node("Add", ["merged", "peak" if softmax_read_twice else "zero"], "y"),
    ]
    arrays = {f"w_{name}": array(WIDTH, WIDTH) / 6 for name in "qkv"}
    arrays |= {"split": np.array([0, ROWS, HEADS, head]), "merge": np.array(merge), "zero": np.float32(0)}
    return graph_of(nodes, arrays, shape=["batch", ROWS, WIDTH])


def test_attention_becomes_one_operator_with_its_own_scale_switched_off() -> None:
    before = attention()

    count, after = changed(before, fuse_attention)

    assert count == 1
    assert operators(after) == Counter({"MatMul": 3, "MultiHeadAttention": 1, "Add": 1})
    assert_same_answers(before, after, ROWS, WIDTH)


def test_attention_over_a_map_becomes_one_operator_and_a_map_again() -> None:
    before = attention(merge=(-1, 2, 3, WIDTH))

    count, after = changed(before, fuse_attention)

    assert (count, operators(after)["MultiHeadAttention"], operators(after)["Softmax"]) == (1, 1, 0)
    assert answer(after, array(2, ROWS, WIDTH)).shape == (2, 2, 3, WIDTH)
    assert_same_answers(before, after, ROWS, WIDTH)


def test_attention_whose_weights_are_read_elsewhere_stays() -> None:
    before = attention(softmax_read_twice=True)

    count, after = changed(before, fuse_attention)

    assert (count, operators(after)) == (0, operators(before))


def patches(*, stride: int = 4, pads: int = 0) -> onnx.ModelProto:
    side = (16 + 2 * pads - 4) // stride + 1
    nodes = [
        node("Conv", ["x", "k"], "map", kernel_shape=[4, 4], strides=[stride] * 2, pads=[pads] * 4, group=1,
             dilations=[1, 1]),
        node("Reshape", ["map", "flat"], "flattened"),
        node("Transpose", ["flattened"], "y", perm=[0, 2, 1]),
    ]  # fmt: skip
    return graph_of(
        nodes, {"k": array(WIDTH, 3, 4, 4), "flat": np.array([0, WIDTH, side * side])}, shape=["batch", 3, 16, 16]
    )


def test_patches_become_rows_of_pixels() -> None:
    before = patches()

    count, after = changed(before, patches_as_rows)

    (conv,) = [each for each in after.graph.node if each.op_type == "Conv"]
    assert (count, helper.get_attribute_value(conv.attribute[0])) == (1, [1, 1])
    assert_same_answers(before, after, 3, 16, 16)


@pytest.mark.parametrize("before", [patches(stride=2), patches(pads=2)], ids=["overlapping", "padded"])
def test_a_convolution_that_overlaps_or_is_padded_stays(before: onnx.ModelProto) -> None:
    count, after = changed(before, patches_as_rows)

    assert (count, operators(after)) == (0, operators(before))


def linear(*, inner: int = WIDTH, outer: int = 48, biased: bool = True, turned: bool = False) -> onnx.ModelProto:
    nodes = [node("Transpose", ["stored"], "w", perm=[1, 0])] if turned else []
    nodes += [node("MatMul", ["x", "w"], "product"), node("Add", ["product", "b"], "y")]
    arrays = {"stored" if turned else "w": array(*((outer, inner) if turned else (inner, outer)))}
    arrays["b"] = array(outer) if biased else array(1, 1, 1)
    return graph_of(nodes, arrays, shape=["batch", ROWS, inner])


@given(inner=st.integers(16, 70), outer=st.integers(16, 70), biased=st.booleans(), turned=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_linear_layer_over_tokens_becomes_a_convolution(inner: int, outer: int, biased: bool, turned: bool) -> None:
    before = linear(inner=inner, outer=outer, biased=biased, turned=turned)

    count, after = changed(before, linear_as_conv)

    assert count == 1
    assert (operators(after)["MatMul"], operators(after)["Conv"], operators(after)["Add"]) == (0, 1, int(not biased))
    assert_same_answers(before, after, ROWS, inner)


def test_an_activation_between_two_layers_stays_in_channels() -> None:
    nodes = [
        node("MatMul", ["x", "w1"], "hidden"),
        node("Mul", ["hidden", "alpha"], "scaled"),
        node("Sigmoid", ["scaled"], "gate"),
        node("Mul", ["hidden", "gate"], "active"),
        node("MatMul", ["active", "w2"], "y"),
    ]
    arrays = {"w1": array(WIDTH, 64) / 6, "w2": array(64, WIDTH), "alpha": np.float32(1.702)}
    before = graph_of(nodes, arrays, shape=["batch", ROWS, WIDTH])

    count, after = changed(before, fuse_gelu, linear_as_conv)

    # Two for the kernels, one into channels, one back to rows: none around the activation.
    assert (count, operators(after)["Transpose"]) == (2, 4)
    assert_same_answers(before, after, ROWS, WIDTH)


@pytest.mark.parametrize("shape", [["batch", WIDTH], ["batch", "tokens", WIDTH]], ids=["one row", "tokens unknown"])
def test_a_product_without_a_known_number_of_tokens_stays(shape: list[int | str]) -> None:
    before = graph_of([node("MatMul", ["x", "w"], "y")], {"w": array(WIDTH, 48)}, shape=shape)

    count, after = changed(before, linear_as_conv)

    assert (count, operators(after)) == (0, operators(before))


def split_projection(*, sizes: tuple[int, ...] | None = None) -> onnx.ModelProto:
    """A linear layer, split in three."""
    split = helper.make_node("Split", ["linear"] + ["sizes"] * (sizes is not None), ["q", "k", "v"], axis=2)
    if sizes is None:
        split.attribute.append(helper.make_attribute("num_outputs", 3))
    nodes = [
        node("MatMul", ["x", "w"], "product"),
        node("Add", ["product", "b"], "linear"),
        split,
        node("Concat", ["v", "q", "k"], "y", axis=2),
    ]
    arrays: dict[str, np.ndarray] = {"w": array(WIDTH, 48), "b": array(48)}
    if sizes is not None:
        arrays["sizes"] = np.array(sizes)
    return graph_of(nodes, arrays, shape=["batch", ROWS, WIDTH])


def test_a_split_projection_becomes_three() -> None:
    before = split_projection()

    count, after = changed(before, linear_as_conv, separate_projections)

    assert (count, operators(after)["Conv"], operators(after)["Split"]) == (1, 3, 0)
    assert_same_answers(before, after, ROWS, WIDTH)


def test_an_uneven_split_stays() -> None:
    before = split_projection(sizes=(8, 24, 16))

    count, after = changed(before, linear_as_conv, separate_projections)

    assert (count, operators(after)["Split"]) == (0, 1)
    assert_same_answers(before, after, ROWS, WIDTH)


def test_a_split_of_what_no_convolution_of_rows_made_stays() -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], "made", kernel_shape=[1, 1]),
        node("Transpose", ["made"], "turned", perm=[0, 3, 2, 1]),
        node("Reshape", ["turned", "shape"], "rows"),
        helper.make_node("Split", ["rows"], ["q", "k", "v"], axis=2, num_outputs=3),
        node("Concat", ["v", "q", "k"], "y", axis=2),
    ]
    arrays = {"w": array(48, WIDTH, 1, 1), "b": array(48), "shape": np.array([-1, 6, 48])}
    before = graph_of(nodes, arrays, shape=["batch", WIDTH, 3, 2])

    count, after = changed(before, separate_projections)

    assert (count, operators(after)["Split"]) == (0, 1)
    assert_same_answers(before, after, WIDTH, 3, 2)


def depthwise(*, times: int, channels: int = WIDTH, own: int = 1, stride: int = 2, biased: bool = True) -> Any:
    """A convolution whose groups have `own` channels, and `times` kernels each."""
    arrays = {
        "w": array(channels // own * times, own, 3, 3),
        **({"b": array(channels // own * times)} if biased else {}),
    }
    settings = {"group": channels // own, "kernel_shape": [3, 3], "pads": [1] * 4, "strides": [stride] * 2}
    nodes = [node("Conv", ["x", *arrays], "made", **settings), node("Relu", ["made"], "y")]
    return graph_of(nodes, arrays, shape=["batch", channels, 5, 6])


@settings(max_examples=10, deadline=None)
@given(times=st.integers(2, 4), channels=st.sampled_from([16, 48]), stride=st.integers(1, 2), biased=st.booleans())
def test_a_depthwise_convolution_that_widens_becomes_several_that_do_not(
    times: int, channels: int, stride: int, biased: bool
) -> None:
    before = depthwise(times=times, channels=channels, stride=stride, biased=biased)

    count, after = changed(before, depthwise_per_kernel)

    assert (count, operators(after)["Conv"]) == (1, times)
    assert {tuple(each.dims)[:2] for each in after.graph.initializer if "kernel" in each.name} == {(channels, 1)}
    assert_same_answers(before, after, channels, 5, 6)


@pytest.mark.parametrize(
    "before",
    [depthwise(times=1), depthwise(times=2, own=2), depthwise(times=2, channels=20)],
    ids=["does not widen", "two channels to a group", "channels that fill no block"],
)
def test_a_convolution_that_is_not_depthwise_or_does_not_widen_stays(before: onnx.ModelProto) -> None:
    count, after = changed(before, depthwise_per_kernel)

    assert (count, operators(after)) == (0, operators(before))


@pytest.mark.parametrize("form", [*PORTABLE_FORMS.values(), *ORT_FORMS.values()])
def test_a_form_applied_twice_changes_nothing_more(form: Callable[[ir.Graph], int], bundle: Path) -> None:
    graph = ir.from_proto(onnx.load(bundle / MODEL_FILE)).graph

    form(graph)

    assert form(graph) == 0


def test_the_bundles_second_graph_is_specialised_throughout(bundle: Path) -> None:
    portable = operators(onnx.load(bundle / MODEL_FILE, load_external_data=False))
    ort = operators(onnx.load(bundle / ORT_MODEL_FILE, load_external_data=False))

    assert (ort["MultiHeadAttention"], ort["Gelu"], ort["Split"], ort["Erf"]) == (2, 2, 0, 0)
    assert (portable["MultiHeadAttention"], portable["Gelu"], portable["Split"], portable["Erf"]) == (0, 0, 2, 2)


def test_the_second_graph_holds_no_large_weights_of_its_own(bundle: Path) -> None:
    model = onnx.load(bundle / ORT_MODEL_FILE, load_external_data=False)

    own = [tensor.name for tensor in model.graph.initializer if len(tensor.raw_data) >= 1024]
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert (own, places) == ([], {MODEL_FILE})
