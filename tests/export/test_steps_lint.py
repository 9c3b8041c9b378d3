"""Lint finds what keeps a graph from running everywhere, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from export_samples import MakeConfig, below
from onnx import TensorProto, helper

from calipso_export import export
from calipso_export import lint as lint_package
from calipso_export.lint import ALL, WARNING, operators
from calipso_export.lint.rule import Nodes, Rule
from calipso_export.lint.targets import before
from calipso_export.steps.lint import lint
from calipso_runtime.errors import ModelError


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    batch: str | int = "batch",
    opsets: Sequence[tuple[str, int]] = (("", 18),),
    functions: Sequence[onnx.FunctionProto] = (),
    shape: tuple[int, ...] = (4,),
) -> Path:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])

    graph = helper.make_graph(list(nodes), "crafted", [value("image")], [value("logits")])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*each) for each in opsets], functions=list(functions), ir_version=9
    )
    onnx.save(model, str(path))
    return path


RELU = helper.make_node("Relu", ["image"], ["logits"], name="only")


def test_a_portable_graph_has_no_findings(tmp_path: Path) -> None:
    assert lint(write(tmp_path / "a.onnx", [RELU])) == []


def test_an_exported_graph_has_no_findings(bundle: Path) -> None:
    assert lint(bundle / "model.onnx") == []


def test_an_operator_of_another_domain_is_found(tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["image"], ["logits"], name="own", domain="com.microsoft")

    findings = lint(write(tmp_path / "a.onnx", [node], opsets=[("", 18), ("com.microsoft", 1)]))

    (finding,) = findings
    assert finding.startswith("node own (com.microsoft.Gelu): it is no standard operator; ")


def test_the_attention_operator_is_found(tmp_path: Path) -> None:
    node = helper.make_node("Attention", ["image", "image", "image"], ["logits"], name="fused")

    path = write(tmp_path / "a.onnx", [node], opsets=[("", 23)], shape=(2, 3, 4))

    *opsets, finding = lint(path, targets=before(10, 14))

    assert all(each.startswith("the graph: it is of opset 23, ") for each in opsets)
    assert finding.startswith("node fused (Attention): the parser has no importer for it; ")


def test_a_fixed_batch_is_found_on_both_sides(tmp_path: Path) -> None:
    assert lint(write(tmp_path / "a.onnx", [RELU], batch=2)) == [
        "image has a fixed batch of 2",
        "logits has a fixed batch of 2",
    ]


def test_a_function_is_found(tmp_path: Path) -> None:
    function = helper.make_function(
        "own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    node = helper.make_node("Twice", ["image"], ["logits"], name="call", domain="own")

    findings = lint(write(tmp_path / "a.onnx", [node], opsets=[("", 18), ("own", 1)], functions=[function]))

    assert "it defines the function Twice" in findings


INVALID = {
    "an input that nothing gives": [helper.make_node("Relu", ["nowhere"], ["logits"])],
    "an operator that does not exist": [helper.make_node("Rleu", ["image"], ["logits"])],
    "an output that nothing gives": [helper.make_node("Relu", ["image"], ["elsewhere"])],
}


@pytest.mark.parametrize("nodes", INVALID.values(), ids=INVALID)
def test_an_invalid_graph_is_found(tmp_path: Path, nodes: Sequence[onnx.NodeProto]) -> None:
    (finding,) = lint(write(tmp_path / "a.onnx", nodes))

    assert finding.startswith("onnx.checker refuses it: ")


def test_a_file_that_is_no_graph_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no graph")

    (finding,) = lint(tmp_path / "a.onnx")

    assert finding.startswith("onnx.checker refuses it: ")


def test_only_errors_of_the_targets_asked_for_count(tmp_path: Path) -> None:
    scales = helper.make_node("Constant", [], ["scales"], value=helper.make_tensor("v", TensorProto.FLOAT, [2], [1, 1]))
    nodes = [
        scales,
        helper.make_node("Resize", ["image", "", "scales"], ["m"], mode="cubic"),
        helper.make_node("Einsum", ["m"], ["logits"], equation="...j->...j"),
    ]
    path = write(tmp_path / "a.onnx", nodes)

    assert len(lint(path)) == 1
    assert lint(path, targets=ALL[1:]) == []


@pytest.mark.usefixtures("traced_once")
def test_a_finding_ends_the_export_and_leaves_nothing(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    find = Nodes("LayerNormalization", operators.is_there)
    monkeypatch.setattr(lint_package, "RULES", (Rule(name="none", find=find, fix="wait", source="this test"),))
    config = make_config()

    with pytest.raises(
        ModelError, match=r"is not portable: node .* \(LayerNormalization\): the parser has no importer"
    ):
        export(config)

    assert below(config.output.parent) == set()


@pytest.mark.usefixtures("traced_once")
def test_a_warning_does_not_end_the_export(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule(name="slow", find=Nodes("*", operators.is_there), fix="wait", source="this test", severity=WARNING)
    monkeypatch.setattr(lint_package, "RULES", (rule,))

    manifest, _ = export(make_config())

    assert manifest.graph["targets"] == list(ALL)
