"""The sweep that gives open_clip's configurations to the compiler of TensorRT for RTX: its rows and its table."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from benchmarks import sweep_compile, sweep_compile_one, sweep_compile_tables
from benchmarks.sweep_compile_one import NAMES, compiled, random_ranges
from benchmarks.sweep_models import described
from onnx import TensorProto, helper

from calipso_runtime.errors import EngineBuildError
from needs import needs_rtx

SAMPLE = ("RN50", "ViT-S-32-alt", "ViT-B-16-SigLIP", "convnext_tiny", "MobileCLIP2-S0")
AMPERE, ADA = (8, 6), (8, 9)


@pytest.mark.slow
@needs_rtx
def test_a_sample_of_the_families_compiles_in_every_precision(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    options = ("--output", str(path), "--layers", "2", "--only", *SAMPLE)
    subprocess.run([sys.executable, "-m", "benchmarks.sweep_compile", *options], check=True, capture_output=True)
    rows = {row["model"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}

    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(SAMPLE, "compiled")
    for row in rows.values():
        assert {name: (each["parses"], "plan_bytes" in each) for name, each in row["precisions"].items()} == (
            dict.fromkeys(NAMES, (True, True))
        )
    transformers = [rows[name]["precisions"][each] for name in SAMPLE[1:3] for each in ("fp16", "fp8")]
    assert [each["unfused"] for each in transformers] == [0] * len(transformers)
    assert all(each["fused"] for each in transformers)


def written(folder: Path, operator: str) -> Path:
    """A graph with an operator of three tensors [N,4,8,64] in fp32."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 8, 64]) for name in ("image", "y")]
    before = {"Neg": "a", "Abs": "b", "Exp": "c"}
    nodes = [helper.make_node(each, ["image"], [name]) for each, name in before.items()]
    nodes.append(helper.make_node(operator, [*before.values()], ["y"], name="own"))
    graph = helper.make_graph(nodes, "one", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@needs_rtx
def test_what_the_builder_refuses_parses_and_builds_for_nothing(tmp_path: Path) -> None:
    row = compiled(written(tmp_path, "Attention"), [AMPERE, ADA])

    assert (row["parses"], row["builds_for"]) == (True, [])
    assert "from the graph for sm86, sm89" in row["refused"]
    assert str(tmp_path) not in row["refused"]
    assert "plan_bytes" not in row


@needs_rtx
def test_what_the_parser_refuses_does_not_parse(tmp_path: Path) -> None:
    row = compiled(written(tmp_path, "Unknown"), [AMPERE])

    assert (row["parses"], row["builds_for"]) == (False, [])
    assert "Unknown" in row["refused"]
    assert str(tmp_path) not in row["refused"]


@pytest.mark.parametrize(("builds_for", "is_broken"), [(["sm86", "sm89"], True), (["sm89"], False)])
def test_a_failure_that_is_not_the_graphs_is_no_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, builds_for: list[str], is_broken: bool
) -> None:
    def killed(*_: object) -> None:
        message = "killed"
        raise EngineBuildError(message)

    monkeypatch.setattr(sweep_compile_one, "compile_plan", killed)
    monkeypatch.setattr(sweep_compile_one, "refused", lambda *_: {"parses": True, "builds_for": builds_for})

    with pytest.raises(EngineBuildError, match="killed") if is_broken else contextlib.nullcontext():
        assert compiled(tmp_path / "model.onnx", [AMPERE, ADA])["builds_for"] == builds_for


def test_no_two_tensors_share_a_range(tmp_path: Path) -> None:
    graph = ir.load(written(tmp_path, "Attention")).graph

    ranges = random_ranges(graph)

    assert set(ranges) == {"image", "a", "b", "c"}
    assert len(set(ranges.values())) == len(ranges)
    assert ranges == random_ranges(graph)


def test_the_image_tower_counts_more_than_the_rest() -> None:
    small, large = described("ViT-B-32"), described("ViT-L-14")

    assert sweep_compile.peak_bytes(large) > 3 * sweep_compile.peak_bytes(small)


def built(**values: Any) -> dict[str, Any]:
    row = {"parses": True, "builds_for": ["sm89"], "fused": 12, "unfused": 0, "compiler": "1.7.1"}
    return {**row, "plan_bytes": 182_000_000, "build_seconds": 2.94, **values}


def table_of(monkeypatch: pytest.MonkeyPatch, folder: Path, *rows: dict[str, Any]) -> dict[str, str]:
    """The lines of the table by configuration, and the text around it."""
    document = {"environment": {"cpu": "a CPU"}, "rows": rows}
    (folder / "sweep-rtx.json").write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setattr(sweep_compile_tables, "RESULTS", folder)
    text = sweep_compile_tables.compiled_table()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    return {**lines, "": text}


def row_of(name: str, precisions: dict[str, Any], *, layers: int | None = None) -> dict[str, Any]:
    return {"model": name, "layers": layers, "status": "compiled", "precisions": precisions}


def test_a_configuration_that_compiles_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fp16_only = {**dict.fromkeys(NAMES, built(fused=1, unfused=11)), "fp16": built()}

    lines = table_of(monkeypatch, tmp_path, row_of("ViT-B-32", fp16_only, layers=2))

    cells = lines["ViT-B-32"].strip("| ").split(" | ")
    assert cells[1:6] == ["2 layers", "yes", "all", "12 of 12", "1 of 12"]
    assert cells[6:] == ["182"] * 4 + ["2.9"] * 4
    assert "Of 1 configurations TensorRT for RTX 1.7.1 builds 1 in fp32, 1 in fp16" in lines[""]
    assert "not yet" in lines["RN50"]


def test_a_block_of_which_nothing_is_known_is_not_fused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    each = {**dict.fromkeys(NAMES, built()), "fp8": built(fused=9, untold=3)}

    lines = table_of(monkeypatch, tmp_path, row_of("ViT-B-32", each))

    assert "| 12 of 12 | 9 of 12 |" in lines["ViT-B-32"]


def test_a_refused_precision_says_what_it_builds_for_and_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = {"parses": False, "builds_for": [], "refused": "node a (Own): it is not supported"}
    some = {"parses": True, "builds_for": ["sm89", "sm120"], "refused": "no product of fp8"}

    lines = table_of(
        monkeypatch, tmp_path, row_of("RN50", {**dict.fromkeys(NAMES, built()), "int8": nothing, "fp8": some})
    )

    assert "| not int8 | int8: no (1); fp8: sm89, sm120 | 12 of 12 | - |" in lines["RN50"]
    assert "1. node a (Own): it is not supported" in lines[""]
