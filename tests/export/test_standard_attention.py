"""Attention as ONNX's own operator: where it is written, where not, and that it answers alike."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from precision_samples import ExportLow, graph_of, lowered, node

from calipso_export.forms.standard_attention import FIRST_OPSET, decompose_attention, standard_attention
from calipso_export.precision import PRECISIONS
from calipso_runtime.graph_file import MODEL_FILE

HEADS, ROWS = 2, 5


def array(*shape: int) -> np.ndarray:
    """Always the same for the same shape."""
    return (np.random.default_rng([*shape]).standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def attention(*, head: int = 16, opset: int = FIRST_OPSET, query: str = "x", keys: str = "x") -> ir.Model:
    """One attention of a tower over rows [batch,L,W], as the towers trace it."""
    width, projections = HEADS * head, {"q": query, "k": keys, "v": "x"}
    nodes, arrays = [], {"split": np.array([0, ROWS, HEADS, head]), "merge": np.array([0, ROWS, width])}
    for name, read in projections.items():
        arrays[f"w_{name}"] = np.roll(array(width, width), ord(name), axis=0)
        nodes += [
            node("MatMul", [read, f"w_{name}"], f"{name}_rows"),
            node("Reshape", [f"{name}_rows", "split"], f"{name}_split"),
            node("Transpose", [f"{name}_split"], name, perm=(0, 2, 3, 1) if name == "k" else (0, 2, 1, 3)),
        ]
    nodes += [
        node("MatMul", ["q", "k"], "scores"),
        node("Softmax", ["scores"], "probabilities", axis=-1),
        node("MatMul", ["probabilities", "v"], "weighted"),
        node("Transpose", ["weighted"], "turned", perm=(0, 2, 1, 3)),
        node("Reshape", ["turned", "merge"], "y"),
    ]
    if query != "x":
        # Learned queries, the same for every picture.
        arrays[query] = array(1, ROWS, width)
    return graph_of(nodes, arrays, shape=["batch", ROWS, width], opset=opset)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(each.op_type for each in model.graph)


def answer(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """Without the optimiser, which would put its own attention in the place of the nodes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_an_attention_of_16_bits_becomes_one_operator(name: str) -> None:
    result = lowered(attention(), PRECISIONS[name])

    found = operators(result.portable)
    assert (found["Attention"], found["Softmax"], found["MatMul"]) == (1, 0, 3)
    assert result.half_forms == {"attention as one operator": 1}


def test_the_operator_answers_like_the_nodes_that_it_replaces() -> None:
    x = array(3, ROWS, HEADS * 16)
    one = lowered(attention(), PRECISIONS["fp16"]).portable
    several = lowered(attention(opset=20), PRECISIONS["fp16"]).portable
    assert operators(several)["Softmax"] == 1

    error = np.abs(answer(one, x) - answer(several, x)).max()

    assert error < 2e-3 * np.abs(answer(several, x)).max()


def test_the_operator_reads_queries_keys_and_values_with_their_heads_first() -> None:
    model = lowered(attention(), PRECISIONS["fp16"]).portable

    (found,) = [each for each in model.graph if each.op_type == "Attention"]

    assert [tuple(map(str, value.shape)) for value in found.inputs] == [("batch", "2", "5", "16")] * 3
    assert found.attributes["scale"].as_float() == 1.0
    assert {value.dtype for value in (*found.inputs, *found.outputs)} == {ir.DataType.FLOAT16}
    assert len({id(value) for value in found.inputs}) == 3


def test_decomposing_it_gives_the_nodes_again() -> None:
    model, x = lowered(attention(), PRECISIONS["fp16"]).portable, array(2, ROWS, HEADS * 16)
    before = answer(lowered(attention(opset=20), PRECISIONS["fp16"]).portable, x)

    assert decompose_attention(model.graph) == 1

    assert operators(model)["Attention"] == 0
    np.testing.assert_allclose(answer(model, x), before, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (lambda: attention(opset=22), "fp16"),
        (attention, "fp32"),
        (lambda: attention(head=8), "fp16"),
        (lambda: attention(head=512), "fp16"),
        (lambda: attention(query="learned"), "fp16"),
    ],
    ids=["an older opset", "fp32", "small heads", "large heads", "queries of no picture"],
)
def test_it_stays_apart_where_the_compiler_has_no_such_kernel(make: Callable[[], ir.Model], precision: str) -> None:
    result = lowered(make(), PRECISIONS[precision])

    found = operators(result.portable)
    assert (found["Attention"], found["Softmax"]) == (0, 1)


def test_a_product_that_stays_in_fp32_keeps_its_attention_apart() -> None:
    model = attention()
    pinned = {str(each.name): "by hand" for each in model.graph if each.outputs[0].name == "scores"}

    assert operators(lowered(model, PRECISIONS["fp16"], pinned=pinned).portable)["Attention"] == 0


def test_a_softmax_over_the_queries_is_no_attention() -> None:
    model = lowered(attention(opset=20), PRECISIONS["fp16"]).portable
    (softmax,) = [each for each in model.graph if each.op_type == "Softmax"]
    softmax.attributes["axis"] = ir.AttrInt64("axis", 2)

    assert standard_attention(model.graph) == 0


def test_scores_that_something_else_reads_are_kept() -> None:
    model = lowered(attention(opset=20), PRECISIONS["fp16"]).portable
    (scores,) = [each for each in model.graph if each.outputs[0].name == "scores"]
    model.graph.outputs.append(scores.outputs[0])

    assert standard_attention(model.graph) == 0


@pytest.mark.slow
def test_a_bundle_answers_alike_with_the_operator_and_without(low_bundle: ExportLow) -> None:
    x = array(3, 3, 32, 32)
    answers = []
    for opset in (20, FIRST_OPSET):
        model = onnx.load(low_bundle("fp16", opset) / MODEL_FILE)
        assert any(each.op_type == "Attention" for each in model.graph.node) == (opset == FIRST_OPSET)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(["embedding"], {session.get_inputs()[0].name: x})[0])

    cosine = (answers[0] * answers[1]).sum(-1) / np.prod([np.linalg.norm(each, axis=-1) for each in answers], axis=0)
    assert cosine.min() > 1 - 1e-5
