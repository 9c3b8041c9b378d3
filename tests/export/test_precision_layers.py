"""Layer by layer: the node that is wrong is told from those that only read what it made."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from precision_samples import chain, graph_of, lowered, node

from calipso_export.precision import PRECISIONS
from calipso_export.precision.half import to_half
from calipso_export.precision.layers import LayerError, layer_errors

RNG = np.random.default_rng(0)
WIDTH, DEPTH = 8, 6
# Rotations: they pass an error on as it is.
WEIGHTS = [np.linalg.qr(RNG.standard_normal((WIDTH, WIDTH)))[0] for _ in range(DEPTH)]
BATCHES = [RNG.standard_normal((4, WIDTH)).astype(np.float32) for _ in range(2)]


def by_output(rows: list[LayerError]) -> dict[str, LayerError]:
    return {row.node.removeprefix("tower.").partition("/")[0]: row for row in rows}


@settings(max_examples=12, deadline=None)
@given(bad=st.integers(0, DEPTH - 1), factor=st.floats(1.01, 3))
def test_the_one_bad_node_is_singled_out_while_its_error_spreads(bad: int, factor: float) -> None:
    original = chain(*WEIGHTS)
    worse = original.clone()
    wrong = (factor * WEIGHTS[bad]).astype(np.float32)
    worse.graph.initializers[f"w{bad}"].const_value = ir.tensor(wrong, name=f"w{bad}")

    rows = list(by_output(layer_errors(original, worse, BATCHES)).values())

    own, added = [row.own_error for row in rows], [row.error for row in rows]
    expected = [factor - 1 if place == bad else 0 for place in range(DEPTH)]
    np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(added, [0] * bad + [factor - 1] * (DEPTH - bad), rtol=1e-3, atol=1e-5)


def test_an_unchanged_graph_has_no_errors_and_true_peaks() -> None:
    original = chain(*WEIGHTS)

    rows = by_output(layer_errors(original, original.clone(), BATCHES))

    assert {(row.error, row.own_error, row.kind) for row in rows.values()} == {(0.0, 0.0, "float")}
    first = np.concatenate(BATCHES) @ WEIGHTS[0].astype(np.float32)
    assert rows["h0"].peak == pytest.approx(np.abs(first).max(), rel=1e-6)
    assert (rows["y"].operator, rows["y"].layer) == ("MatMul", "tower.y")


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_a_16_bit_graph_is_wrong_by_its_rounding_alone(name: str) -> None:
    original = chain(*WEIGHTS)

    rows = by_output(layer_errors(original, lowered(original, PRECISIONS[name]).portable, BATCHES))

    unit = {"fp16": 2.0**-11, "bf16": 2.0**-8}[name]
    assert all(0 < row.own_error < 3 * unit for row in rows.values())
    assert rows["y"].error > rows["h0"].error


def test_an_output_beyond_the_range_is_infinitely_wrong_and_so_is_what_reads_it() -> None:
    large = 6e4 * np.eye(WIDTH)
    original = chain(*WEIGHTS[:2], large, large, WEIGHTS[3])
    lower = original.clone()
    to_half(lower.graph, ir.DataType.FLOAT16, opset=18)

    rows = by_output(layer_errors(original, lower, BATCHES))

    assert all(math.isfinite(rows[name].error) for name in ("h0", "h1"))
    assert (rows["h2"].own_error, rows["h2"].error) == (math.inf, math.inf)
    assert rows["y"].error == math.inf
    assert rows["h2"].peak > 65504
    assert rows["h2"].kind == "float16"


def test_an_overflow_in_one_of_several_batches_is_not_forgotten() -> None:
    original = chain(*WEIGHTS[:3])
    lower = original.clone()
    to_half(lower.graph, ir.DataType.FLOAT16, opset=18)

    for batches in ([BATCHES[0], 1e5 * BATCHES[1]], [1e5 * BATCHES[1], BATCHES[0]]):
        assert by_output(layer_errors(original, lower, batches))["h0"].error == math.inf


def test_a_quantised_product_is_compared_with_the_same_of_the_original() -> None:
    original = chain(*WEIGHTS)

    rows = by_output(layer_errors(original, lowered(original, PRECISIONS["int8"]).portable, BATCHES))

    # The first and the last are in fp32: they only pass on what they read.
    assert rows["h0"].own_error == 0
    assert rows["y"].own_error < 1e-6 < rows["y"].error
    assert all(1e-3 < rows[f"h{place}"].own_error < 5e-2 for place in range(1, DEPTH - 1))


def test_neither_graph_is_changed() -> None:
    original = chain(*WEIGHTS)
    lower = lowered(original, PRECISIONS["fp16"]).portable
    before = [ir.to_proto(graph).SerializeToString(deterministic=True) for graph in (original, lower)]

    layer_errors(original, lower, BATCHES)

    assert [ir.to_proto(graph).SerializeToString(deterministic=True) for graph in (original, lower)] == before


def test_nodes_that_make_no_floats_are_left_out() -> None:
    nodes = [node("Shape", ["x"], "sizes"), node("Reshape", ["x", "sizes"], "y")]
    model = graph_of(nodes, {}, shape=["batch", WIDTH])

    assert list(by_output(layer_errors(model, model.clone(), BATCHES))) == ["y"]
