"""fp16 and bf16: every tensor of the graph has the type it should, and what stays in fp32 says why."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from precision_samples import chain, graph_of, lowered, node, node_named

from calipso_export import ExportConfig
from calipso_export.lint import tensor_types
from calipso_export.models import LoadedModel
from calipso_export.precision import PRECISIONS
from calipso_export.precision.half import to_half, type_io
from calipso_export.reference import HeadTensors
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import classifier_module, trace
from calipso_runtime.errors import UsageError
from calipso_runtime.graph_file import MODEL_FILE

KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOATS = {TensorProto.FLOAT, *KINDS.values()}
# Where CLIP's answers die in 16 bits (docs/precision.md); everything behind the tower too, CALIP's softmax with it.
ISLANDS = {"LayerNormalization", "Exp", "ReduceL2", "Clip"}
CONV = "tower.visual.conv1/Conv"


@pytest.fixture(scope="module")
def fp32(bundle: Path) -> ir.Model:
    """The fp32 graph of the tiny ViT with both heads, opset 18."""
    model = ir.from_proto(onnx.load(bundle / MODEL_FILE))
    model.metadata_props.clear()
    return model


@pytest.fixture(scope="module")
def convolutions(resnet: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    """The fp32 graph of the tiny ModifiedResNet, opset 22."""
    import torch

    config = ExportConfig(
        model="unused", classes=("a", "b"), output=tmp_path_factory.mktemp("unused"), random_init=0, opset=22
    )
    heads = HeadTensors(text=torch.nn.functional.normalize(torch.ones(2, 32), dim=1))
    module = classifier_module(resnet, heads, config.outputs)
    return optimise(trace(module, resnet, config)).portable


def is_island(each: onnx.NodeProto) -> bool:
    return each.op_type in ISLANDS or not each.name.startswith("tower")


@pytest.mark.parametrize("name", KINDS)
def test_every_tensor_has_the_type_it_should(fp32: ir.Model, name: str) -> None:
    found = lowered(fp32, PRECISIONS[name])
    graph = ir.to_proto(found.portable)
    types = tensor_types(graph)
    computing = [each for each in graph.graph.node if each.op_type not in ("Cast", "Shape", "ConstantOfShape")]

    wrong = [
        (each.name, tensor)
        for each in computing
        for tensor in (*each.input, *each.output)
        if types.get(tensor) in FLOATS
        and types[tensor] != (TensorProto.FLOAT if is_island(each) or each.name in found.kept else KINDS[name])
    ]
    assert wrong == []
    assert sum(is_island(each) for each in computing) > 10
    assert sum(types[each.output[0]] == KINDS[name] for each in computing) > 30


@pytest.mark.parametrize("name", KINDS)
def test_the_towers_weights_are_stored_in_16_bits(fp32: ir.Model, name: str) -> None:
    found = lowered(fp32, PRECISIONS[name])
    graph = found.portable.graph

    wide = [
        value.name
        for value in graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT
        and not all(is_island(ir.to_proto(use.node)) or use.node.name in found.kept for use in value.uses())
    ]
    assert wide == []
    assert sum(value.dtype == KINDS[name] for value in graph.initializers.values()) > 10


@pytest.mark.parametrize("name", KINDS)
def test_no_value_is_cast_twice_to_one_type(fp32: ir.Model, name: str) -> None:
    graph = lowered(fp32, PRECISIONS[name]).portable.graph

    casts = Counter((id(each.inputs[0]), each.attributes["to"].as_int()) for each in graph if each.op_type == "Cast")
    assert len(casts) > 10
    assert set(casts.values()) == {1}


def test_a_value_that_two_nodes_read_in_another_type_is_cast_once() -> None:
    nodes = [
        node("Softmax", ["x"], "weights"),
        node("Relu", ["weights"], "a"),
        node("Neg", ["weights"], "b"),
        node("Add", ["a", "b"], "y"),
    ]
    model = graph_of(nodes, {}, shape=["batch", 4])

    to_half(model.graph, ir.DataType.FLOAT16, opset=18)

    casts = [each for each in model.graph if each.op_type == "Cast"]
    assert [each.inputs[0].name for each in casts] == ["weights"]
    assert {use.node.op_type for use in casts[0].outputs[0].uses()} == {"Relu", "Neg"}


def test_making_a_graph_leaves_the_original_as_it_is(fp32: ir.Model) -> None:
    before = ir.to_proto(fp32).SerializeToString(deterministic=True)

    for precision in PRECISIONS.values():
        lowered(fp32, precision)

    assert ir.to_proto(fp32).SerializeToString(deterministic=True) == before


def test_a_pinned_node_stays_in_fp32_between_casts_and_its_neighbours_do_not() -> None:
    model = chain(*np.ones((3, 4, 4)))

    reasons = to_half(model.graph, ir.DataType.FLOAT16, opset=18, pinned=["tower.h1/MatMul"])

    kinds = {name: node_named(model, f"tower.{name}/MatMul").outputs[0].dtype for name in ("h0", "h1", "y")}
    half = ir.DataType.FLOAT16
    assert kinds == {"h0": half, "h1": ir.DataType.FLOAT, "y": half}
    assert reasons == {"tower.h1/MatMul": "pinned"}
    assert model.graph.initializers["w1"].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [("FLOAT16", {"tower.h1/MatMul": "a weight is beyond 65504"}), ("BFLOAT16", {})],
)
def test_a_weight_beyond_the_range_keeps_its_node_in_fp32(kind: str, reasons: dict[str, str]) -> None:
    large = np.full((4, 4), 65536.0)

    found = to_half(chain(np.ones((4, 4)), large, np.ones((4, 4))).graph, ir.DataType[kind], opset=18)

    assert found == reasons


def test_the_largest_number_of_fp16_is_within_its_range() -> None:
    model = chain(np.full((4, 4), 65504.0))

    assert to_half(model.graph, ir.DataType.FLOAT16, opset=18) == {}
    assert np.isfinite(model.graph.initializers["w0.float16"].const_value.numpy()).all()


def test_an_operator_without_bf16_at_this_opset_stays_and_says_since_when_it_has_it(fp32: ir.Model) -> None:
    found = lowered(fp32, PRECISIONS["bf16"])

    assert found.kept[CONV] == "Conv takes no bfloat16 before opset 22"
    assert node_named(found.portable, CONV).outputs[0].dtype == ir.DataType.FLOAT
    assert lowered(fp32, PRECISIONS["fp16"]).kept == {}


@pytest.mark.slow
def test_a_graph_that_would_be_mostly_fp32_is_refused(convolutions: ir.Model) -> None:
    older = convolutions.clone()
    older.opset_imports[""] = 18

    with pytest.raises(
        UsageError, match=r"precision bf16 is not possible .* in opset 18: Conv takes no bfloat16 before opset 22, and"
    ):
        lowered(older, PRECISIONS["bf16"])


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_with_an_opset_that_knows_the_type_a_convolutional_tower_is_of_it(convolutions: ir.Model, name: str) -> None:
    found = lowered(convolutions, PRECISIONS[name])

    types = tensor_types(ir.to_proto(found.portable))
    convs = [each.outputs[0].name for each in found.portable.graph if each.op_type == "Conv"]
    assert found.kept == {}
    assert len(convs) > 10
    assert {types[output] for output in convs} == {KINDS[name]}


def test_inputs_and_outputs_have_the_type_asked_for_and_their_names(fp32: ir.Model) -> None:
    model = fp32.clone()

    type_io(model.graph, ir.DataType.FLOAT16)

    types = tensor_types(ir.to_proto(model))
    names = ["image", "logits", "embedding", "probabilities", "tokens"]
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == names
    assert {types[name] for name in names} == {TensorProto.FLOAT16}
    assert types["image.float"] == TensorProto.FLOAT
