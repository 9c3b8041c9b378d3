"""`calipso lint --compile`: the compiler's own verdict, beside that of the rules."""

import json
from pathlib import Path

import lint_verdicts
import onnx
import pytest
from click.testing import CliRunner, Result

from calipso_export.cli_lint import lint_command
from calipso_runtime.cli import CalipsoGroup
from needs import needs_rtx

GROUP = CalipsoGroup(commands={"lint": lint_command})


def run(*arguments: object) -> Result:
    return CliRunner().invoke(GROUP, ["lint", *map(str, arguments), "--compile", "--target", "rtx-1.7"])


def saved(folder: Path, name: str) -> Path:
    path = folder / "one.onnx"
    onnx.save(lint_verdicts.table()[name].model(), path)
    return path


@needs_rtx
def test_a_bundle_that_is_built_passes(bundle: Path) -> None:
    result = run(bundle)

    assert (result.exit_code, result.stderr) == (0, "")
    *_, checked, built = result.stdout.splitlines()
    assert checked == "checked for tensorrt-rtx-1.7"
    assert built.startswith("built by TensorRT for RTX 1.")
    assert built.endswith(" for sm80, sm86, sm89, sm120, sm121")


@needs_rtx
def test_a_graph_that_only_the_compiler_refuses_fails(tmp_path: Path) -> None:
    path = saved(tmp_path, "Relu float parser opset 20")
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1 << 31
    onnx.save(model, path)

    document = json.loads(run(path, "--json").stdout)

    assert document["errors"] > 0
    assert {each["rule"] for each in document["findings"]} == {"compiler-parses"}
    assert run(path).exit_code == 1


@needs_rtx
def test_the_parser_names_the_node(tmp_path: Path) -> None:
    result = run(saved(tmp_path, "Transpose uint8 opset 22"), "--json")

    document = json.loads(result.stdout)
    (found,) = (each for each in document["findings"] if each["rule"] == "compiler-parses")
    assert result.exit_code == 1
    assert document["compiler"].startswith("TensorRT for RTX 1.")
    assert (found["where"], found["severity"]) == ("node n (Transpose)", "error")
    assert found["targets"][0].startswith("tensorrt-rtx-1.")
    assert document["errors"] == sum(each["severity"] == "error" for each in document["findings"])


@needs_rtx
def test_a_node_without_a_name_goes_by_its_output(tmp_path: Path) -> None:
    path = saved(tmp_path, "Transpose uint8 opset 22")
    model = onnx.load(path)
    model.graph.node[0].name = ""
    onnx.save(model, path)

    result = run(path)

    assert "error compiler-parses (tensorrt-rtx-1." in result.stdout
    assert "    node y0 (Transpose): " in result.stdout


@needs_rtx
def test_a_crash_of_the_compiler_is_a_finding(tmp_path: Path) -> None:
    result = run(saved(tmp_path, "Attention float16 one tensor opset 24"))

    assert (result.exit_code, result.stderr) == (1, "")
    assert "error compiler-crashes (tensorrt-rtx-1." in result.stdout
    assert "    the graph: the compiler crashed (SIG" in result.stdout


@needs_rtx
@pytest.mark.parametrize(
    ("kind", "capabilities"), [("int8", "sm80, sm86, sm89, sm120, sm121"), ("float8e4m3fn", "sm89, sm120, sm121")]
)
def test_a_graph_is_compiled_for_the_gpus_that_have_its_types(tmp_path: Path, kind: str, capabilities: str) -> None:
    result = run(saved(tmp_path, f"QuantizeLinear float float {kind} zero point 0 opset 22"))

    assert result.exit_code == 0
    assert result.stdout.endswith(f" for {capabilities}\n")


def test_without_the_compiler_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path)

    result = run(saved(tmp_path, "Relu float parser opset 20"))

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == ("error: TensorRT for RTX cannot be imported (not here): pip install 'calipso[rtx]'\n")


def test_without_the_option_no_compiler_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path)

    result = CliRunner().invoke(GROUP, ["lint", str(saved(tmp_path, "Relu float parser opset 20")), "--json"])

    assert result.exit_code == 0
    assert "compiler" not in json.loads(result.stdout)
