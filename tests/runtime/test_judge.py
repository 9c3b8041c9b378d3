"""The compiler's verdict about any graph: what it takes, what it refuses, and what makes it crash."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import rtx_samples
from onnx import TensorProto, helper

from calipso_runtime.engines.families import Capability
from calipso_runtime.engines.judge import CRASH, Judge
from calipso_runtime.errors import BackendUnavailableError, EngineBuildError
from needs import needs_rtx

ADA: tuple[Capability, ...] = ((8, 9),)


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as started:
        yield started


def saved(folder: Path, operator: str, *, kind: int = TensorProto.FLOAT, **attributes: object) -> Path:
    """A graph of one node `n` over a tensor of two dynamic axes."""
    node = helper.make_node(operator, ["x"], ["y"], name="n", **attributes)
    tensors = [helper.make_tensor_value_info(name, kind, ["batch", "width"]) for name in "xy"]
    graph = helper.make_graph([node], "one", tensors[:1], tensors[1:])
    path = folder / f"{operator}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def crashing(folder: Path) -> Path:
    path = folder / "crash.onnx"
    onnx.save(rtx_samples.crashing_model(), path)
    return path


@needs_rtx
def test_a_graph_with_dynamic_axes_is_taken_for_several_gpus(judge: Judge, tmp_path: Path) -> None:
    verdict = judge.judge(saved(tmp_path, "Relu"), [(8, 0), (12, 0)])

    assert verdict.refusals == ()
    assert verdict.version.startswith("1.")


@needs_rtx
def test_a_node_that_the_parser_refuses_is_named_without_noise(judge: Judge, tmp_path: Path) -> None:
    (refusal,) = judge.judge(saved(tmp_path, "Transpose", kind=TensorProto.UINT8), ADA).refusals

    assert (refusal.by, refusal.name, refusal.operator, refusal.place) == ("parser", "n", "Transpose", 0)
    assert "UInt8" in refusal.wrong
    assert "CUDA" not in refusal.wrong


@needs_rtx
def test_a_graph_that_only_the_builder_refuses_is_refused(judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / "fp8.onnx"
    onnx.save(rtx_samples.attention_model("fp8"), path)

    (refusal,) = judge.judge(path, [(8, 6)]).refusals

    assert (refusal.by, refusal.operator, refusal.place) == ("builder", "", None)
    assert refusal.wrong


@needs_rtx
def test_a_graph_that_crashes_the_compiler_is_refused_and_the_next_one_is_judged(judge: Judge, tmp_path: Path) -> None:
    (refusal,) = judge.judge(crashing(tmp_path), ADA).refusals

    assert refusal.by == CRASH
    assert refusal.wrong.startswith("the compiler crashed (SIG")
    after = judge.judge(saved(tmp_path, "Relu"), ADA)
    assert (after.refusals, after.version[:2]) == ((), "1.")


@needs_rtx
def test_a_node_inside_of_another_one_is_named_and_has_no_place(judge: Judge, tmp_path: Path) -> None:
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branches = {
        name: helper.make_graph([helper.make_node(operator, ["x"], ["inner"], name="deep")], name, [], [inner])
        for name, operator in (("then_branch", "Unique"), ("else_branch", "Relu"))
    }
    values = [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, [3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], **branches)], "g", values, outputs)
    path = tmp_path / "nested.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)

    (refusal,) = judge.judge(path, ADA).refusals

    assert (refusal.name, refusal.operator, refusal.place) == ("deep", "Unique", None)
    assert refusal.wrong == "it is not supported"


@needs_rtx
def test_a_file_that_is_no_graph_is_refused(judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no graph")

    assert judge.judge(path, ADA).refusals != ()


@needs_rtx
def test_a_process_that_the_system_kills_is_no_verdict(judge: Judge, tmp_path: Path) -> None:
    path = saved(tmp_path, "Relu")
    judge.judge(path, ADA)
    process = judge._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    with pytest.raises(EngineBuildError, match=r"killed while it built .*ran out of memory"):
        judge.judge(path, ADA)


def test_without_the_compiler_the_error_says_how_to_install_it(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'calipso\[rtx\]'"):
        judge.judge(tmp_path / "any.onnx", ADA)


def test_a_compiler_that_crashes_when_it_is_imported_is_said_not_to_start(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("import os; os.abort()")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(
        BackendUnavailableError, match=r"does not start: its process crashed \(SIGABRT\).*'calipso\[rtx\]'"
    ):
        judge.judge(tmp_path / "any.onnx", ADA)
