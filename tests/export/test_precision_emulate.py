"""The emulation of a 16-bit or fp8 graph rounds every tensor as the type does, and shows what an engine may hide."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from precision_samples import chain, graph_of, lowered, node, node_named, run

from calipso_export.precision import PRECISIONS
from calipso_export.precision.emulate import emulate, needs_emulation
from calipso_export.precision.half import to_half, type_io
from calipso_export.precision.quantised import FP8, quantise
from calipso_export.precision.run import answering

NUMPY = {"FLOAT16": np.float16, "BFLOAT16": ml_dtypes.bfloat16}
Round = Callable[[np.ndarray], np.ndarray]


def rounding(kind: str) -> Round:
    def rounded(values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return values.astype(NUMPY[kind]).astype(np.float32)

    return rounded


def emulated(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with answering(model) as answer:
        return answer(x)["y"]


def sixteenths(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of which fp32 holds every product and every sum of a few hundred, in whatever order."""
    return (rng.integers(-64, 65, shape) / 16).astype(np.float32)


def layer(rng: np.random.Generator, inner: int, outer: int) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A product, a bias, an activation, a residual."""
    nodes = [
        node("MatMul", ["x", "w"], "product"),
        node("Add", ["product", "b"], "biased"),
        node("Relu", ["biased"], "active"),
        node("MatMul", ["active", "back"], "projected"),
        node("Mul", ["projected", "c"], "scaled"),
        node("Add", ["x", "scaled"], "y"),
    ]
    arrays = {
        "w": sixteenths(rng, inner, outer),
        "b": sixteenths(rng, outer),
        "back": sixteenths(rng, outer, inner),
        "c": np.float32(0.1),
    }
    return graph_of(nodes, arrays, shape=["batch", inner]), arrays


@pytest.mark.parametrize("kind", NUMPY)
@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 5), inner=st.integers(1, 40), outer=st.integers(1, 40), seed=st.integers(0, 1 << 32))
def test_a_layer_answers_bit_by_bit_what_numpy_computes(
    *, kind: str, batch: int, inner: int, outer: int, seed: int
) -> None:
    rng, rounded = np.random.default_rng(seed), rounding(kind)
    model, arrays = layer(rng, inner, outer)
    x = sixteenths(rng, batch, inner)

    to_half(model.graph, ir.DataType[kind], opset=18)
    type_io(model.graph, ir.DataType.FLOAT)
    found = emulated(model, x)

    w, b, back, c = (rounded(arrays[name]) for name in ("w", "b", "back", "c"))
    active = np.maximum(rounded(rounded(rounded(x) @ w) + b), 0)
    # The second sums are of numbers that were rounded: exact in double, and in fp32 up to its own rounding.
    projected = (active.astype(np.float64) @ back.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(found, rounded(rounded(x) + rounded(rounded(projected) * c)))


def overflowing() -> ir.Model:
    """2 x 300 x 200 is 1.2e5, beyond fp16's 65504, and a ten-thousandth of that is 12."""
    nodes = [node("MatMul", ["x", "w"], "product"), node("Mul", ["product", "c"], "y")]
    arrays = {"w": np.full((2, 1), 200, np.float32), "c": np.float32(1e-4)}
    model = graph_of(nodes, arrays, shape=["batch", 2])
    to_half(model.graph, ir.DataType.FLOAT16, opset=18)
    type_io(model.graph, ir.DataType.FLOAT)
    return model


def test_an_overflow_on_the_way_is_seen_in_the_emulation() -> None:
    assert emulated(overflowing(), np.full((1, 2), 300, np.float32)) == np.inf


def test_onnx_runtime_on_a_cpu_hides_the_same_overflow() -> None:
    found = run(overflowing(), np.full((1, 2), 300, np.float32))

    # Why there is an emulation at all. Once this fails, ONNX Runtime rounds to fp16 between nodes.
    assert found == pytest.approx(12.0, rel=1e-3)


def test_an_output_that_leaves_in_fp16_is_rounded_to_it() -> None:
    model = graph_of([node("Mul", ["x", "c"], "y")], {"c": np.float32(3)}, shape=["batch", 2])
    to_half(model.graph, ir.DataType.FLOAT16, opset=18)
    type_io(model.graph, ir.DataType.FLOAT16)

    x = np.array([[1.0001, 30000]], np.float32)
    found = emulated(model, x)

    np.testing.assert_array_equal(found, [[3.0, np.inf]])
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT16


def test_inputs_and_outputs_keep_their_names_and_types() -> None:
    model = overflowing()
    type_io(model.graph, ir.DataType.FLOAT16)

    graph = emulate(model.clone()).graph

    for before, after in zip((*model.graph.inputs, *model.graph.outputs), (*graph.inputs, *graph.outputs), strict=True):
        assert (after.name, after.dtype) == (before.name, before.dtype)


@pytest.mark.parametrize(("name", "needed"), [("fp32", False), ("int8", False), ("fp16", True), ("bf16", True)])
def test_only_what_engines_compute_unalike_is_emulated(name: str, needed: bool) -> None:
    assert needs_emulation(lowered(chain(*np.ones((4, 4, 4))), PRECISIONS[name]).portable) is needed


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    width=st.integers(1, 20),
    outer=st.integers(1, 20),
    reach=st.floats(2**-10, 2**10),
    seed=st.integers(0, 1 << 32),
)
def test_fp8_spelled_out_is_what_onnx_and_ml_dtypes_say(
    *, batch: int, width: int, outer: int, reach: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    nodes = [
        node("MatMul", ["x", "w0"], "h0"),
        node("MatMul", ["h0", "w1"], "h1"),
        node("MatMul", ["h1", "w2"], "y"),
        node("Identity", ["h0"], "before"),
        node("Identity", ["h0"], "after"),
        node("Identity", ["w1"], "weight"),
    ]
    shapes = ((width, width), (width, outer), (outer, 1))
    arrays = {f"w{place}": rng.standard_normal(shape).astype(np.float32) for place, shape in enumerate(shapes)}
    model = graph_of(nodes, arrays, shape=["batch", width], opset=20)
    made = {value.name: value for each in model.graph for value in each.outputs}
    model.graph.outputs.extend([made["before"], made["after"], made["weight"]])
    # About half of the activations are beyond the range: those saturate.
    quantise(model.graph, FP8, ranges={"h0": reach})
    product = node_named(model, "tower.h1/MatMul")
    for name, value in zip(("after", "weight"), product.inputs, strict=True):
        made[name].producer().replace_input_with(0, value)
    x = (rng.standard_normal((batch, width)) * 2 * reach).astype(np.float32)

    with answering(model) as answer:
        found = answer(x)

    step, scales = np.float32(reach / 448), np.abs(arrays["w1"]).max(axis=0) / np.float32(448)
    fp8 = ml_dtypes.float8_e4m3fn
    wanted = np.clip(found["before"] / step, -448, 448).astype(fp8).astype(np.float32) * step
    np.testing.assert_array_equal(found["after"], wanted)
    np.testing.assert_array_equal(found["weight"], (arrays["w1"] / scales).astype(fp8).astype(np.float32) * scales)
    by_onnx = ReferenceEvaluator(ir.to_proto(model)).run(["weight"], {"x": x})[0]
    np.testing.assert_array_equal(found["weight"], by_onnx)
