"""Eight bits: weights are at most half a step off, activations are quantised once, and what is left out is left out."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from precision_samples import chain, graph_of, node, node_named

from calipso_export.precision import PRECISIONS
from calipso_export.precision.lower import lower
from calipso_export.precision.quantised import (
    FP8,
    INT8,
    INT8_PAIR_SAFE,
    Quantised,
    is_pair_safe,
    out_axis,
    quantisable,
    quantise,
    quantised_array,
)
from calipso_runtime.pair_sums import MULTIPLIED_IN_INT8

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((6, 6))
RANGES = {"x": 1.0, "h0": 2.0, "h1": 4.0, "h2": 8.0}
FORMS = {"int8": INT8, "pair-safe int8": INT8_PAIR_SAFE, "fp8": FP8}


@settings(max_examples=100, deadline=None)
@given(
    array=arrays_of.arrays(
        np.float32,
        arrays_of.array_shapes(min_dims=2, max_dims=4, max_side=6),
        elements=st.floats(-(2.0**14), 2.0**14, width=32),
    ),
    axis=st.integers(0, 1),
    form=st.sampled_from([INT8, INT8_PAIR_SAFE]),
)
def test_a_weight_in_int8_is_at_most_half_a_step_off(array: np.ndarray, axis: int, form: Quantised) -> None:
    stored, scale = quantised_array(array, form, axis)

    step = np.expand_dims(scale, tuple(place for place in range(array.ndim) if place != axis)).astype(np.float64)
    # Of a step in fp32; both divisions are rounded.
    assert (np.abs(stored * step - array) <= step * 0.5 * (1 + 1e-4)).all()
    assert (stored.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (array.shape[axis],))
    assert np.abs(stored.astype(int)).max(initial=0) <= form.largest
    assert (scale > 0).all()


@settings(max_examples=50, deadline=None)
@given(array=arrays_of.arrays(np.float32, (5, 4), elements=st.floats(-1000, 1000, width=32)))
def test_a_weight_in_fp8_is_its_nearest_number(array: np.ndarray) -> None:
    stored, scale = quantised_array(array, FP8, 1)

    finite = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    finite = finite[np.isfinite(finite)]
    scaled = array / scale
    nearest = np.abs(scaled[..., None].astype(np.float64) - finite).min(axis=-1)
    np.testing.assert_allclose(np.abs(stored.astype(np.float64) - scaled), nearest, atol=1e-9)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_largest_of_each_channel_becomes_the_largest_number(form: Quantised) -> None:
    array = MATRIX.astype(np.float32)
    # Neighbours of opposite signs: the sum of no pair is larger than the largest weight.
    array = np.abs(array) * np.array([[1], [-1]] * 3, np.float32)

    stored, _ = quantised_array(array, form, 1)

    np.testing.assert_array_equal(np.abs(stored.astype(np.float32)).max(axis=0), form.largest)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_channel_of_zeros_stays_zero_with_a_positive_scale(form: Quantised) -> None:
    array = MATRIX.astype(np.float32)
    array[:, 2] = 0

    stored, scale = quantised_array(array, form, 1)

    assert scale[2] > 0
    assert np.isfinite(scale).all()
    np.testing.assert_array_equal(stored[:, 2].astype(np.float32), 0)


def test_the_first_and_the_last_product_and_those_of_the_head_are_left_out() -> None:
    nodes = [
        *(node("MatMul", [read, "w"], made) for read, made in (("x", "h0"), ("h0", "h1"), ("h1", "h2"), ("h2", "h3"))),
        node("MatMul", ["h3", "w"], "y", layer="zero_shot"),
    ]
    model = graph_of(nodes, {"w": MATRIX.astype(np.float32)}, shape=["batch", 6])

    assert [each.name for each in quantisable(model.graph)] == ["tower.h1/MatMul", "tower.h2/MatMul"]


def test_a_product_of_two_activations_is_no_candidate() -> None:
    nodes = [node("MatMul", ["x", "w"], name) for name in ("a", "b", "c")]
    nodes += [node("MatMul", ["a", "b"], "scores"), node("MatMul", ["scores", "c"], "y")]
    model = graph_of(nodes, {"w": MATRIX.astype(np.float32)}, shape=[6, 6])

    assert [each.name for each in quantisable(model.graph)] == ["tower.b/MatMul"]


@pytest.mark.parametrize(
    ("size", "groups", "takes"), [(1, 4, False), (3, 2, False), (3, 1, True), (5, 1, True), (7, 1, False)]
)
def test_fp8_leaves_convolutions_out_for_which_tensorrt_has_no_fast_kernel(size: int, groups: int, takes: bool) -> None:
    kernels = {"w": np.ones((4, 4, 1, 1), np.float32), "k": np.ones((4, 4 // groups, size, size), np.float32)}
    nodes = [
        node("Conv", ["x", "w"], "first"),
        node("Conv", ["first", "k"], "a", group=groups, pads=[size // 2] * 4),
        node("Conv", ["a", "w"], "b"),
        node("Conv", ["b", "w"], "y"),
    ]
    changed = {}

    for form in (INT8, FP8):
        model = graph_of(nodes, kernels, shape=["batch", 4, 9, 9])
        changed[form.kind] = quantise(model.graph, form, ranges=dict.fromkeys(("first", "a", "b"), 4.0))

    assert changed[INT8.kind] == ["tower.a/Conv", "tower.b/Conv"]
    assert changed[FP8.kind] == (["tower.a/Conv"] if takes else []) + ["tower.b/Conv"]


def test_pinned_products_are_left_out() -> None:
    model = chain(*[MATRIX] * 4)

    changed = quantise(model.graph, INT8, ranges=RANGES, pinned=["tower.h1/MatMul"])

    assert changed == ["tower.h2/MatMul"]
    assert [value.name for value in node_named(model, "tower.h1/MatMul").inputs] == ["h0", "w1"]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_zero_points_are_written_out_and_0_and_scales_are_what_the_ranges_say(form: Quantised) -> None:
    model = chain(*[MATRIX] * 4, opset=20)

    quantise(model.graph, form, ranges=RANGES)

    pairs = [each for each in model.graph if each.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert [each.op_type for each in pairs].count("QuantizeLinear") == 2
    for each in pairs:
        zero = each.inputs[2].const_value.numpy()
        assert zero.dtype == form.kind.numpy()
        np.testing.assert_array_equal(zero.astype(np.float32), 0)
        assert zero.shape == tuple(each.inputs[1].shape)
    # Activations have all eight bits, with 7-bit weights too.
    largest = 448 if form is FP8 else 127
    scales = {each.inputs[0].name: each.inputs[1].const_value.numpy() for each in pairs}
    assert scales["h0"] == np.float32(2 / largest)
    assert scales["h1"] == np.float32(4 / largest)


def test_an_activation_that_never_was_anything_but_0_has_a_positive_scale() -> None:
    model = chain(*[MATRIX] * 3)

    quantise(model.graph, INT8, ranges={"h0": 0.0})

    assert model.graph.initializers["h0.scale"].const_value.numpy() > 0


def test_an_activation_that_two_products_read_is_quantised_once() -> None:
    nodes = [node("MatMul", ["x", "w"], "h")]
    nodes += [node("MatMul", ["h", f"w_{name}"], name) for name in "qkv"]
    nodes += [node("Sum", ["q", "k", "v"], "s"), node("MatMul", ["s", "w"], "y")]
    arrays = {f"w{name}": RNG.standard_normal((6, 6)).astype(np.float32) for name in ("", "_q", "_k", "_v")}
    model = graph_of(nodes, arrays, shape=["batch", 6])

    quantise(model.graph, INT8, ranges={"h": 1.0})

    quantised = [each for each in model.graph if each.op_type == "QuantizeLinear"]
    assert [each.inputs[0].name for each in quantised] == ["h"]
    inputs = {id(node_named(model, f"tower.{name}/MatMul").inputs[0]) for name in "qkv"}
    assert len(inputs) == 1


def test_without_ranges_only_weights_are_quantised() -> None:
    model = chain(*[MATRIX] * 4)

    assert quantise(model.graph, INT8, ranges=None) == ["tower.h1/MatMul", "tower.h2/MatMul"]
    assert "QuantizeLinear" not in {each.op_type for each in model.graph}


@pytest.mark.parametrize("precision", MULTIPLIED_IN_INT8)
def test_weights_are_pair_safe_unless_the_full_range_is_asked_for(precision: str) -> None:
    model = chain(*[MATRIX] * 4, opset=20)

    safe, full = (
        lower(model, PRECISIONS[precision], ranges=RANGES, full_range=full_range).portable
        for full_range in (False, True)
    )

    assert (is_pair_safe(safe.graph), is_pair_safe(full.graph)) == (True, False)
    assert np.abs(full.graph.initializers["w1.int8"].const_value.numpy().astype(int)).max() == 127


def test_weights_that_no_cpu_multiplies_in_eight_bits_keep_the_full_range() -> None:
    weights = lower(chain(*[MATRIX] * 4), PRECISIONS["int8-weights"], ranges=None).portable.graph.initializers

    np.testing.assert_array_equal(np.abs(weights["w1.int8"].const_value.numpy().astype(int)).max(axis=0), 127)


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "axis"),
    [
        ("MatMul", (6, 8), {}, 1),
        ("Gemm", (6, 8), {}, 1),
        ("Gemm", (6, 8), {"transB": 0}, 1),
        ("Gemm", (8, 6), {"transB": 1}, 0),
        ("Conv", (8, 6, 1, 1), {}, 0),
    ],
)
def test_the_scales_of_a_weight_are_along_its_output_channels(
    operator: str, shape: tuple[int, ...], attributes: dict[str, int], axis: int
) -> None:
    read = ["batch", 6, 3, 3] if operator == "Conv" else ["batch", 6]
    model = graph_of(
        [
            node("Relu", ["x"], "a"),
            node(operator, ["a", "w"], "first", **attributes),
            node(operator, ["a", "v"], "middle", **attributes),
            node(operator, ["a", "w"], "y", **attributes),
        ],
        {"w": np.ones(shape, np.float32), "v": RNG.standard_normal(shape).astype(np.float32)},
        shape=read,
    )
    product = node_named(model, f"tower.middle/{operator}")

    quantise(model.graph, INT8, ranges=None)

    dequantise = product.inputs[1].producer()
    assert out_axis(product) == axis
    assert dequantise.attributes["axis"].as_int() == axis
    assert tuple(dequantise.inputs[1].shape) == (8,)
    others = tuple(place for place in range(len(shape)) if place != axis)
    peaks = np.abs(dequantise.inputs[0].const_value.numpy().astype(int)).max(axis=others)
    assert isinstance(dequantise, ir.Node)
    np.testing.assert_array_equal(peaks, 127)
