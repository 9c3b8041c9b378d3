"""A product that is split afterwards becomes one product for each part, where products are in eight bits."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from export_samples import MakeConfig
from precision_samples import LOOSE, graph_of, node, run

from calipso_export import export
from calipso_export.forms.separate_products import separate_products

WIDTH = 8
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, WIDTH)).astype(np.float32)
NAME = "one product for each part of a split"


def joined(
    *, bias: str = "behind", axis: int = -1, read_again: str = "", sizes: tuple[int, ...] = (WIDTH,) * 3
) -> ir.Model:
    """x @ w, and a bias `behind` or `before` it in the Add, split and added up again by concatenation.

    Args:
        bias: where it stands among the Add's inputs; none where empty.
        axis: which is split.
        read_again: name of a value that is read once more.
        sizes: of the parts.
    """
    arrays = {"w": RNG.standard_normal((WIDTH, 24)).astype(np.float32), "sizes": np.array(sizes, np.int64)}
    nodes = [node("MatMul", ["x", "w"], "product")]
    if bias:
        arrays["b"] = RNG.standard_normal(24).astype(np.float32)
        nodes.append(node("Add", ["product", "b"] if bias == "behind" else ["b", "product"], "added"))
    parts = [f"part{place}" for place in range(len(sizes))]
    split = node("Split", ["added" if bias else "product", "sizes"], "part0", axis=axis)
    split.output.extend(parts[1:])
    nodes += [split, node("Concat", [*parts[1:], parts[0]], "y", axis=axis)]
    if read_again:
        nodes[-1].output[0] = "turned"
        nodes.append(node("Concat", ["turned", read_again], "y", axis=-1))
    return graph_of(nodes, arrays, shape=["batch", 5, WIDTH])


def operators(model: ir.Model) -> Counter[str]:
    return Counter(each.op_type for each in model.graph)


@pytest.mark.parametrize("bias", ["behind", "before", ""])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (4, 20), (24,)])
def test_each_part_has_a_product_of_its_own_and_the_answers_stay(bias: str, sizes: tuple[int, ...]) -> None:
    model = joined(bias=bias, sizes=sizes)
    wanted = run(model, X)

    assert separate_products(model.graph) == 1

    np.testing.assert_allclose(run(model, X), wanted, rtol=0, atol=1e-5)
    assert operators(model)["MatMul"] == len(sizes)
    assert operators(model)["Add"] == (len(sizes) if bias else 0)
    assert "Split" not in operators(model)


def test_the_parts_keep_the_layer_of_the_product_in_their_names() -> None:
    model = joined()

    separate_products(model.graph)

    names = sorted(str(each.name) for each in model.graph if each.op_type == "MatMul")
    assert names == [f"tower.product/MatMul.{place}" for place in range(3)]


@pytest.mark.parametrize(
    "model",
    [
        joined(axis=1, sizes=(2, 3)),
        joined(read_again="product"),
        joined(read_again="added"),
        joined(bias="", read_again="product"),
    ],
    ids=["another axis", "the product is read again", "the sum is read again", "without a bias"],
)
def test_what_is_split_otherwise_or_read_elsewhere_stays(model: ir.Model) -> None:
    before = operators(model)

    assert separate_products(model.graph) == 0
    assert operators(model) == before


def test_a_product_of_two_activations_stays() -> None:
    split = node("Split", ["product"], "part0", axis=-1, num_outputs=2)
    split.output.append("part1")
    nodes = [node("Transpose", ["x"], "turned", perm=[0, 2, 1]), node("MatMul", ["turned", "x"], "product"), split]
    nodes.append(node("Sub", ["part0", "part1"], "y"))
    model = graph_of(nodes, {}, shape=["batch", 5, WIDTH], opset=18)

    assert separate_products(model.graph) == 0


@pytest.mark.usefixtures("quick_trace")
@pytest.mark.parametrize(
    ("precision", "separated"), [("int8", True), ("fp8", True), ("fp16", False), ("int8-weights", False)]
)
def test_only_graphs_that_multiply_in_eight_bits_are_changed(
    make_config: MakeConfig, precision: str, *, separated: bool
) -> None:
    config = make_config(precision=precision, opset=20, outputs=("logits", "embedding"), gates=LOOSE)

    manifest, parity = export(config)

    assert parity.status == "passed"
    assert (manifest.graph["forms"]["portable"].get(NAME, 0) > 0) is separated


def turned(*, bias: bool = True, read_again: bool = False) -> ir.Model:
    """x @ w as timm's windows take it apart: [B,L,3*H*E] to [3,B,H,L,E], and each of the three cut out."""
    heads, size = 2, 4
    arrays = {
        "w": RNG.standard_normal((WIDTH, 24)).astype(np.float32),
        "b": RNG.standard_normal(24).astype(np.float32),
        "apart": np.array([-1, 5, 3, heads, size]),
        "axis": np.array([0]),
        **{f"n{number}": np.array([number]) for number in range(4)},
    }
    nodes = [node("MatMul", ["x", "w"], "product")]
    if bias:
        nodes.append(node("Add", ["product", "b"], "added"))
    nodes += [
        node("Reshape", ["added" if bias else "product", "apart"], "heads"),
        node("Transpose", ["heads"], "parts", perm=(2, 0, 3, 1, 4)),
    ]
    for place in range(3):
        nodes.append(node("Slice", ["parts", f"n{place}", f"n{place + 1}", "axis"], f"cut{place}"))
        nodes.append(node("Squeeze", [f"cut{place}", "axis"], f"part{place}"))
    nodes.append(node("Concat", ["part2", "part0", "part1"], "y", axis=-1))
    if read_again:
        nodes[-1:] = [node("ReduceSum", ["parts", "n0"], "sum", keepdims=0), node("Add", ["part0", "sum"], "y")]
    return graph_of(nodes, arrays, shape=["batch", 5, WIDTH])


@pytest.mark.parametrize("bias", [True, False])
def test_parts_that_are_turned_and_cut_out_have_products_of_their_own(bias: bool) -> None:
    model = turned(bias=bias)
    wanted = run(model, X)

    assert separate_products(model.graph) == 1

    np.testing.assert_allclose(run(model, X), wanted, rtol=0, atol=1e-5)
    found = operators(model)
    assert (found["MatMul"], found["Add"], found["Slice"], found["Squeeze"]) == (3, 3 if bias else 0, 0, 0)


def test_parts_that_something_reads_together_stay_one_product() -> None:
    model = turned(read_again=True)

    assert separate_products(model.graph) == 0
    assert operators(model)["MatMul"] == 1
