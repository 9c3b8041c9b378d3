"""`calipso lint`: what it prints, for which targets, and with which exit code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from lint_samples import FP32, INT64, Case, constants_of, model_of
from onnx import TensorProto, helper

from calipso_export.cli_lint import lint_command
from calipso_export.lint import ALL
from calipso_runtime.cli import CalipsoGroup
from calipso_runtime.graph_file import MODEL_FILE

Save = Callable[..., Path]
# As `calipso` finds it through its entry point.
GROUP = CalipsoGroup(commands={"lint": lint_command})


def run(*arguments: object) -> Result:
    return CliRunner().invoke(GROUP, ["lint", *map(str, arguments)])


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(model: onnx.ModelProto, **how: object) -> Path:
        path = tmp_path / "any.onnx"
        onnx.save(model, str(path), **how)
        return path

    return saved


def resized(operator: str, *, count: int = 1, **attributes: object) -> onnx.ModelProto:
    """A row of nodes that Calipso did not write."""
    names = ["x", *(f"m{place}" for place in range(count))]
    nodes = [
        helper.make_node(operator, [names[place]], [names[place + 1]], name=f"n{place}", **attributes)
        for place in range(count)
    ]
    model = model_of(nodes, {}, {}, opset=18)
    for values, name in ((model.graph.input, "x"), (model.graph.output, names[-1])):
        values.append(helper.make_tensor_value_info(name, FP32, ["batch", "batch"]))
    return model


def test_a_graph_without_faults_is_said_to_have_none(save: Save) -> None:
    path = save(resized("Relu"))

    result = run(path)

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{path}: 0 errors, 0 warnings\nchecked for {', '.join(ALL)}\n"


def test_an_error_of_one_target_is_told_with_node_fix_and_source(save: Save) -> None:
    result = run(save(resized("Einsum", equation="ii->ii")))

    assert result.exit_code == 1
    assert result.stdout.splitlines()[:4] == [
        "error einsum-equation (tensorrt-10.3)",
        "    node n0 (Einsum): its equation is ii->ii",
        "    to do: give every axis a letter of its own, without ellipsis",
        "    source: NvInfer.h (IEinsumLayer, 10.3), onnx-tensorrt docs/Changelog.md (10.12)",
    ]
    assert "any.onnx: 1 error, 0 warnings" in result.stdout


@pytest.mark.parametrize(("target", "code"), [("tensorrt-10.3", 1), ("10.3", 1), ("10.13", 0), ("tensorrt-11.4", 0)])
def test_only_the_target_asked_for_counts(save: Save, target: str, code: int) -> None:
    result = run(save(resized("Einsum", equation="ii->ii")), "--target", target)

    assert result.exit_code == code
    assert result.stdout.endswith(f"checked for tensorrt-{target.removeprefix('tensorrt-')}\n")


def test_several_targets_may_be_asked_for(save: Save) -> None:
    result = run(save(resized("Relu")), "--target", "11.4", "--target", "10.3")

    assert result.stdout.endswith("checked for tensorrt-10.3, tensorrt-11.4\n")


def test_a_rule_that_hits_many_nodes_is_told_once_with_the_first_few(save: Save) -> None:
    result = run(save(resized("Einsum", count=5, equation="ii->ii")))

    assert result.stdout.splitlines()[1] == (
        "    5 places, such as node n0 (Einsum), node n1 (Einsum), node n2 (Einsum): its equation is ii->ii"
    )
    assert "any.onnx: 5 errors" in result.stdout


def test_warnings_do_not_fail(bundle: Path) -> None:
    result = run(bundle)

    assert (result.exit_code, result.stderr) == (0, "")
    assert f"warning attention-fusion ({', '.join(ALL)})\n" in result.stdout
    assert f"{bundle}: 0 errors, " in result.stdout


def test_json_holds_every_finding(save: Save) -> None:
    path = save(resized("Einsum", count=2, equation="ii->ii"))

    result = run(path, "--json", "--target", "10.3")

    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert {key: document[key] for key in ("path", "targets", "errors", "warnings")} == {
        "path": str(path),
        "targets": ["tensorrt-10.3"],
        "errors": 2,
        "warnings": 0,
    }
    assert [each["where"] for each in document["findings"]] == ["node n0 (Einsum)", "node n1 (Einsum)"]
    assert set(document["findings"][0]) == {"rule", "severity", "where", "wrong", "fix", "source", "targets"}


def test_names_of_nodes_are_no_markup(save: Save) -> None:
    model = resized("Einsum", equation="ii->ii")
    model.graph.node[0].name = "[red]n:cat:[/red]"

    assert "node [red]n:cat:[/red] (Einsum)" in run(save(model)).stdout


def test_an_unknown_target_is_bad_usage(save: Save) -> None:
    result = run(save(resized("Relu")), "--target", "tensorrt-9.3")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: the target is 'tensorrt-9.3': expected one of {', '.join(ALL)}\n"


def test_no_path_is_bad_usage() -> None:
    assert run().exit_code == 2


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x09"])
def test_a_file_that_is_no_graph_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)

    result = run(path)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path} is no valid ONNX graph, or its external data is not beside it: ")


def test_nothing_at_the_path_is_one_error(tmp_path: Path) -> None:
    result = run(tmp_path / "lost.onnx")

    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: {tmp_path / 'lost.onnx'} does not exist: expected a bundle (a directory) or a .onnx file\n"
    )


def test_a_folder_that_is_no_bundle_is_one_error(tmp_path: Path) -> None:
    result = run(tmp_path)

    assert result.exit_code == 1
    assert "is not a Calipso bundle" in result.stderr


def test_a_bundle_that_was_edited_is_refused(bundle: Path, tmp_path: Path) -> None:
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / MODEL_FILE).open("r+b") as file:
        file.write(b"\0")

    result = run(tmp_path)

    assert result.exit_code == 1
    assert MODEL_FILE in result.stderr


def test_external_data_is_read_from_beside_the_file(save: Save) -> None:
    case = Case("QuantizeLinear", ("x", "s", "z"), constants={"s": np.ones(3, np.float32), "z": np.int8([0, 0, 1])})
    path = save(_checked(case.model()), save_as_external_data=True, location="a.data", size_threshold=0)

    assert "its zero point z is not 0" in run(path).stdout

    path.with_name("a.data").unlink()
    result = run(path)
    assert result.exit_code == 1
    assert "or its external data is not beside it" in result.stderr


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """With shapes and an output, as onnx.checker wants it."""
    for value in model.graph.input:
        value.CopyFrom(helper.make_tensor_value_info(value.name, FP32, ["batch", 3]))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT8, ["batch", 3]))
    return model


@pytest.mark.slow
def test_a_graph_beyond_2_gb_is_linted_by_its_path(tmp_path: Path) -> None:
    rows, columns = 17 << 10, 1 << 15
    weight = TensorProto(name="w", data_type=FP32, dims=[rows, columns], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "a.data"), ("offset", "0"), ("length", str(4 * rows * columns))):
        weight.external_data.add(key=key, value=value)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["m"]), _top()], {}, {}, [weight, *_many()])
    for values, name, kind, width in (
        (model.graph.input, "x", FP32, rows),
        (model.graph.output, "y", FP32, 4000),
        (model.graph.output, "at", INT64, 4000),
    ):
        values.append(helper.make_tensor_value_info(name, kind, ["batch", width]))
    onnx.save(model, str(tmp_path / "a.onnx"))
    with (tmp_path / "a.data").open("wb") as file:
        file.truncate(4 * rows * columns)  # Sparse: nothing of it is written.

    result = run(tmp_path / "a.onnx")

    assert (result.exit_code, result.stderr) == (1, "")
    assert "node top (TopK): K is 4000" in result.stdout


def _top() -> onnx.NodeProto:
    return helper.make_node("TopK", ["m", "k"], ["y", "at"], name="top")


def _many() -> list[onnx.TensorProto]:
    return constants_of({"k": np.array([4000])})


def test_the_command_runs_as_a_process(bundle: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "calipso_runtime", "lint", str(bundle), "--target", "10.3", "--json"],
        capture_output=True,
        check=False,
        text=True,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["errors"] == 0
