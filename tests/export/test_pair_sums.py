"""Pair-safe int8 weights: their products with uint8 activations never leave 16 bits, two by two."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from precision_samples import chain, graph_of, node, node_named

from calipso_export.precision.pair_sums import PAIR_LIMIT, channel_peaks, is_depthwise
from calipso_export.precision.quantised import INT8, INT8_PAIR_SAFE, Quantised, is_pair_safe, quantise, quantised_array

RNG = np.random.default_rng(0)
INT16 = np.iinfo(np.int16)
WIDTH = 6
NUMBERS = st.floats(-(2.0**14), 2.0**14, width=32)
MATRICES = arrays_of.arrays(np.float32, arrays_of.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=NUMBERS)
KERNELS = arrays_of.arrays(np.float32, arrays_of.array_shapes(min_dims=4, max_dims=4, max_side=5), elements=NUMBERS)


def vpmaddubsw(activations: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The x86 instruction: uint8 times int8, the products of two neighbours added and saturated in 16 bits."""
    products = activations.astype(np.int32) * rows.astype(np.int32)
    products = np.pad(products, [(0, 0), (0, products.shape[1] % 2)])
    return np.clip(products[:, ::2] + products[:, 1::2], INT16.min, INT16.max)


def overflows(rows: np.ndarray) -> bool:
    """Whether the worst activations change a sum of int8 rows [channels, inputs]: 255 at each weight of one sign."""
    for sign in (1, -1):
        activations = np.where(np.sign(rows) == sign, 255, 0).astype(np.uint8)
        exact = (activations.astype(np.int64) * rows).sum(axis=1)
        if (vpmaddubsw(activations, rows).sum(axis=1) != exact).any():
            return True
    return False


def product(weight: np.ndarray, operator: str = "MatMul", **attributes: object) -> ir.Model:
    """One product with this weight, between two others."""
    size = len(weight) if operator == "MatMul" else weight.shape[1] * int(attributes.get("group", 1))
    shape = ["batch", size] if operator == "MatMul" else ["batch", size, 7, 7]
    return graph_of([node(operator, ["x", "w"], "y", **attributes)], {"w": weight}, shape=shape)


@settings(max_examples=200, deadline=None)
@given(array=MATRICES, axis=st.integers(0, 1))
def test_no_activations_make_a_pair_safe_matrix_overflow(array: np.ndarray, axis: int) -> None:
    stored, _ = quantised_array(array, INT8_PAIR_SAFE, axis)

    assert not overflows(stored if axis == 0 else stored.T)


@settings(max_examples=200, deadline=None)
@given(array=KERNELS)
def test_a_pair_safe_kernel_overflows_neither_by_position_nor_gathered_into_one_row(array: np.ndarray) -> None:
    stored, _ = quantised_array(array, INT8_PAIR_SAFE, 0)

    by_position = np.moveaxis(stored, 1, -1)
    assert not overflows(by_position.reshape(-1, stored.shape[1]))
    assert not overflows(by_position.reshape(len(stored), -1))


def test_weights_of_the_full_range_overflow() -> None:
    stored, _ = quantised_array(np.ones((2, 4), np.float32), INT8, 0)

    assert overflows(stored)


@pytest.mark.parametrize(("largest", "safe"), [(PAIR_LIMIT // 2, True), (PAIR_LIMIT // 2 + 1, False)])
def test_the_limit_of_a_pair_is_tight(largest: int, *, safe: bool) -> None:
    rows = np.full((1, 2), largest, np.int8)

    assert overflows(rows) is not safe
    assert bool(channel_peaks(rows.astype(np.int16), 0, depthwise=False)[0] <= PAIR_LIMIT) is safe


def test_two_weights_of_opposite_signs_keep_all_eight_bits() -> None:
    array = np.tile(np.array([1.0, -1.0], np.float32), (3, 4))

    stored, _ = quantised_array(array, INT8_PAIR_SAFE, 0)

    np.testing.assert_array_equal(np.abs(stored), 127)


def test_pair_safe_weights_lose_less_than_one_bit() -> None:
    array = RNG.standard_normal((64, 768)).astype(np.float32)

    errors = {}
    for form in (INT8, INT8_PAIR_SAFE):
        stored, scale = quantised_array(array, form, 0)
        errors[form] = float(np.sqrt(np.mean((stored * scale[:, None] - array) ** 2)))

    assert errors[INT8_PAIR_SAFE] < 1.6 * errors[INT8]


def test_depthwise_kernels_keep_the_full_range() -> None:
    model = product(np.ones((WIDTH, 1, 3, 3), np.float32), "Conv", group=WIDTH)

    assert is_depthwise(node_named(model, "tower.y/Conv"))
    stored, _ = quantised_array(np.ones((WIDTH, 1, 3, 3), np.float32), INT8_PAIR_SAFE, 0, depthwise=True)
    np.testing.assert_array_equal(stored, 127)


@pytest.mark.parametrize(
    "model",
    [
        product(np.ones((4, 4), np.float32)),
        product(np.ones((4, 4, 3, 3), np.float32), "Conv"),
        product(np.ones((4, 2, 3, 3), np.float32), "Conv", group=2),
    ],
    ids=["matrix", "kernel", "grouped kernel"],
)
def test_other_products_are_not_depthwise(model: ir.Model) -> None:
    assert not any(is_depthwise(each) for each in model.graph)


@pytest.mark.parametrize(("form", "safe"), [(INT8, False), (INT8_PAIR_SAFE, True)])
def test_a_graph_is_pair_safe_if_all_its_weights_are(form: Quantised, *, safe: bool) -> None:
    model = chain(*[RNG.standard_normal((64, 64))] * 4)

    quantise(model.graph, form, ranges={"h0": 1.0, "h1": 1.0})

    assert is_pair_safe(model.graph) is safe
