"""`calipso build` on stand-ins: what it checks, what it keeps, and how it ends when it is interrupted."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gpu import Gpu
from runtime_samples import MakeBundle, tiny_reference

import calipso_runtime
from calipso_runtime.bundle import open_bundle
from calipso_runtime.caching import cache_folder
from calipso_runtime.cli import calipso
from calipso_runtime.engines.build import build
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.engines.plans import engines_folder, read_plan
from calipso_runtime.errors import BackendUnavailableError, EngineBuildError, UsageError
from child_process import child

SMALL = BuildOptions(profiles=(BatchRange.parse("1,2,4"),))
ON_GPU = Path(__file__).parent / "stand_ins" / "on_gpu.py"


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def held_to(make_bundle: MakeBundle) -> Path:
    """A bundle with answers to be held to."""
    return make_bundle(reference=tiny_reference())


def engines(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "engines").iterdir()) if (folder / "engines").exists() else []


def test_what_was_built_is_held_to_the_bundles_gates_and_its_record_says_how_far_it_was_off(
    gpu: Gpu, held_to: Path
) -> None:
    finished = build(held_to, SMALL, report=quiet)

    record = read_plan(finished.plan.record_path).record
    assert record.parity == "passed"
    assert 0 <= record.checks["worst"]["relative_logit_error"] < 1e-5
    assert record.machine.gpu == "Stand-in GPU"
    assert record.options == SMALL
    assert [(each["mode"], each["name"]) for each in record.tensors] == [
        ("input", "image"),
        ("output", "logits"),
        ("output", "embedding"),
    ]
    assert record.layers["heavy_types"] == {"fp32": 2}
    assert len(record.builds[0]["latency_ms"]["2"]) > 10
    assert gpu.held == {}


def test_an_engine_with_wrong_answers_is_not_kept(gpu: Gpu, held_to: Path) -> None:
    gpu.faults.distort = 1.5

    with pytest.raises(EngineBuildError, match="and is not kept:\n  batch 1: relative logit error"):
        build(held_to, SMALL, report=quiet)

    assert engines(held_to) == []
    assert gpu.held == {}


def test_an_engine_with_wrong_answers_does_not_replace_one_that_was_right(gpu: Gpu, held_to: Path) -> None:
    build(held_to, SMALL, report=quiet)
    before = engines(held_to)
    gpu.faults.distort = 1.5

    with pytest.raises(EngineBuildError, match="is not kept"):
        build(held_to, BuildOptions(profiles=(BatchRange.parse("3"),)), report=quiet)

    assert engines(held_to) == before


def test_an_engine_that_is_silently_in_fp32_is_an_error(gpu: Gpu, make_bundle: MakeBundle) -> None:
    with pytest.raises(EngineBuildError, match=r"no layer computes in fp16, .*: 2 in fp32"):
        build(make_bundle(precision="fp16"), SMALL, report=quiet)


def test_edges_that_are_not_the_graphs_are_an_error(gpu: Gpu, make_bundle: MakeBundle) -> None:
    graph = {"inputs": {"image": {"dtype": "float32"}}, "outputs": {"logits": {"dtype": "float16"}, "tokens": {}}}

    with pytest.raises(EngineBuildError, match="the engine has no tokens\n  logits is float32 in the engine, float16"):
        build(make_bundle(graph=graph), SMALL, report=quiet)


def test_attention_that_is_not_fused_is_warned_of(gpu: Gpu, make_bundle: MakeBundle) -> None:
    gpu.faults.layers = [
        {"Name": "a", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Half"}], "TacticName": "gemm"},
        {
            "Name": "b",
            "LayerType": "kgen",
            "Outputs": [{"Format/Datatype": "Half"}],
            "TacticName": "__myl_Softmax",
            "Metadata": "[ONNX Layer: tower.visual.block/Softmax]",
        },
    ]

    finished = build(make_bundle(precision="fp16"), SMALL, report=quiet)

    assert "1 attention blocks run unfused (tower.visual.block)" in finished.checks.warnings[0]


def test_products_that_fell_back_to_fp32_are_named(gpu: Gpu, make_bundle: MakeBundle) -> None:
    gpu.faults.layers = [
        {
            "Name": name,
            "LayerType": "gemm",
            "Outputs": [{"Format/Datatype": kind}],
            "TacticName": "sm90_xmma_gemm",
            "Metadata": f"[ONNX Layer: {node}]",
        }
        for name, kind, node in (
            ("a", "Half", "tower.visual.conv1/Conv"),
            ("b", "Float", "tower.visual.block.mlp.c_fc/MatMul"),
            ("c", "Float", "tower.visual.pinned/MatMul"),
            ("d", "Float", "head/MatMul"),
        )
    ]
    graph = {"precision": {"kept_in_fp32": [{"node": "tower.visual.pinned/MatMul", "why": "pinned"}]}}

    finished = build(make_bundle(precision="fp16", graph=graph), SMALL, report=quiet)

    assert "1 products fell back to fp32: tower.visual.block.mlp.c_fc/MatMul" in finished.checks.warnings
    assert finished.plan.record.layers["products"]["tower.visual.conv1/Conv"] == "fp16"


def eight_bit_layers(*operands: list[str]) -> list[object]:
    """Products with eight-bit weights, as the inspector lists them: their output is wide in any case."""
    return [
        {
            "Name": f"gemm {place}",
            "LayerType": "gemm",
            "Inputs": [{"Dimensions": [2, 8], "Format/Datatype": kinds[0]}],
            "Constants": [{"Dimensions": [8, 8], "Format/Datatype": kinds[1]}],
            "Outputs": [{"Dimensions": [2, 8], "Format/Datatype": "Float"}],
            "Metadata": f"[ONNX Layer: tower.{place}/MatMul][ONNX Layer: tower.{place}/MatMul/dequantise_weight]",
        }
        for place, kinds in enumerate(operands)
    ]


def test_an_engine_whose_products_multiply_eight_bits_is_right_though_their_outputs_are_wide(
    gpu: Gpu, make_bundle: MakeBundle
) -> None:
    gpu.faults.layers = eight_bit_layers(["Int8", "Int8"])

    finished = build(make_bundle(precision="int8"), SMALL, report=quiet)

    assert finished.plan.record.layers["heavy_types"] == {"int8": 1}
    assert not any("weights multiply" in warning for warning in finished.checks.warnings)


def test_products_whose_weights_are_dequantised_while_the_engine_runs_are_named(
    gpu: Gpu, make_bundle: MakeBundle
) -> None:
    gpu.faults.layers = eight_bit_layers(["Int8", "Int8"], ["Int8", "Float"])

    finished = build(make_bundle(precision="int8"), SMALL, report=quiet)

    assert (
        "1 of 2 products with int8 weights multiply int8 x fp32 (tower.1/MatMul): the engine dequantises their weights "
        "whenever it runs"
    ) in finished.checks.warnings


def test_a_bundle_without_answers_is_built_and_the_doubt_is_told(gpu: Gpu, own: Path) -> None:
    finished = build(own, SMALL, report=quiet)

    assert finished.plan.record.parity == "unknown"
    assert any("whether the engine answers right is unknown" in warning for warning in finished.checks.warnings)


def test_of_several_builds_the_fastest_that_passes_is_kept_and_their_spread_recorded(
    gpu: Gpu, held_to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = gpu.tensorrt.Context._work

    def slow_unless_second(self, shape, addresses):
        run, delay_s = work(self, shape, addresses), 0.0 if self.engine.head["number"] == 1 else 0.002

        def slowly(data: object) -> None:
            time.sleep(delay_s)
            run(data)

        return slowly

    gpu.tensorrt.Context._work = slow_unless_second
    monkeypatch.setattr("calipso_runtime.engines.checks._TIMED_S", 0.02)

    finished = build(held_to, SMALL, builds=3, report=quiet)

    assert [each["kept"] for each in finished.plan.record.builds] == [False, True, False]
    assert finished.plan.record.checks["answers_between_builds"] == 0.0


def test_fewer_than_one_build_is_refused(held_to: Path) -> None:
    with pytest.raises(UsageError, match="builds is 0: expected at least 1"):
        build(held_to, SMALL, builds=0, report=quiet)


def test_what_was_measured_is_kept_for_the_next_build(gpu: Gpu, held_to: Path, tmp_path: Path) -> None:
    kept = tmp_path / "folder" / "cache.timing"

    build(held_to, SMALL, timing_cache=kept, report=quiet)
    assert kept.read_bytes() == b"ttt"
    build(held_to, SMALL, timing_cache=kept, report=quiet)

    assert kept.read_bytes() == b"tttttt"


@pytest.mark.parametrize("content", [b"damaged", b"of another device"])
def test_what_was_measured_is_begun_anew_where_it_cannot_be_used(
    gpu: Gpu, held_to: Path, tmp_path: Path, content: bytes
) -> None:
    kept = tmp_path / "cache.timing"
    kept.write_bytes(content)

    build(held_to, SMALL, timing_cache=kept, report=quiet)

    assert kept.read_bytes() == b"ttt"


def test_a_log_that_cannot_be_written_does_not_end_the_build(gpu: Gpu, held_to: Path) -> None:
    class Full(io.StringIO):
        def write(self, _line: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    finished = build(held_to, SMALL, log=Full(), report=quiet)

    assert "TensorRT's log is not written any more: No space left on device" in finished.warnings


def test_without_a_name_what_was_measured_is_kept_per_device(
    gpu: Gpu, held_to: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALIPSO_CACHE", str(tmp_path / "cache"))

    build(held_to, SMALL, report=quiet)

    assert [path.name.startswith("sm90-10.3.0-") for path in (cache_folder() / "tensorrt").iterdir()] == [True]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("parse", r"cannot read .*node tower/Strange \(Strange\): no importer for Strange.*calipso lint"),
        ("build", r"could not build an engine from .*the stand-in was told that build fails"),
    ],
)
def test_what_tensorrt_refuses_is_told_with_its_reason_and_leaves_nothing(
    gpu: Gpu, held_to: Path, fault: str, reason: str
) -> None:
    gpu.faults.failing.add(fault)

    with pytest.raises(EngineBuildError, match=reason):
        build(held_to, SMALL, report=quiet)

    assert engines(held_to) == []
    assert gpu.held == {}


def test_where_memory_does_not_suffice_the_error_says_what_holds_it_and_what_takes_less(
    gpu: Gpu, held_to: Path
) -> None:
    gpu.faults.failing.add("allocating memory")

    with pytest.raises(EngineBuildError) as caught:
        build(held_to, SMALL, report=quiet)

    assert re.search(r"Free on Stand-in GPU are \d+ of 8192 MiB; .* \(pid \d+\): \d+ MiB", str(caught.value))
    assert "--weight-streaming" in str(caught.value)


def test_a_report_that_raises_ends_the_build(gpu: Gpu, held_to: Path) -> None:
    def broken(what: str, done: int, total: int) -> None:
        message = "the terminal went away"
        raise OSError(message)

    with pytest.raises(OSError, match="the terminal went away"):
        build(held_to, SMALL, report=broken)

    assert engines(held_to) == []


def test_options_reach_tensorrt(gpu: Gpu, held_to: Path) -> None:
    build(held_to, BuildOptions(profiles=(BatchRange.parse("2"),), hardware_compatible=True), report=quiet)
    assert "TF32" not in gpu.faults.flags
    build(held_to, BuildOptions(profiles=(BatchRange.parse("2"),), tf32=True), report=quiet)
    assert "TF32" in gpu.faults.flags


def test_a_dla_that_is_not_there_is_told(gpu: Gpu, held_to: Path) -> None:
    options = BuildOptions(profiles=(BatchRange.parse("1"),), dla_core=0)

    with pytest.raises(EngineBuildError, match="DLA core 0 is not there: this device has 0"):
        build(held_to, options, report=quiet)


def test_a_dla_falls_back_to_the_gpu(gpu: Gpu, held_to: Path) -> None:
    gpu.faults.dla_cores = 2

    build(held_to, BuildOptions(profiles=(BatchRange.parse("1"),), dla_core=1), report=quiet)

    assert "GPU_FALLBACK" in gpu.faults.flags
    with calipso_runtime.load(held_to, backend="tensorrt") as classifier:
        assert classifier.logits(np.zeros((1, 3, 16, 16), np.float32)).shape == (1, 7)


def test_a_bare_graph_is_built_too(gpu: Gpu, held_to: Path, tmp_path: Path) -> None:
    graph = tmp_path / "alone.onnx"
    graph.write_bytes((held_to / "model.onnx").read_bytes())

    finished = build(graph, SMALL, report=quiet)

    assert finished.plan.path.parent == tmp_path / "engines"
    with calipso_runtime.load(graph) as classifier:
        assert classifier.backend == "tensorrt"


def test_the_engine_that_was_built_passes_calipso_check(gpu: Gpu, held_to: Path) -> None:
    build(held_to, BuildOptions(), report=quiet)

    result = CliRunner().invoke(calipso, ["check", str(held_to), "--backend", "tensorrt"])

    assert result.exit_code == 0, result.output
    assert "parity: passed" in result.output


def test_without_a_driver_the_command_fails_with_one_line(held_to: Path) -> None:
    result = CliRunner().invoke(calipso, ["build", str(held_to), "--engine", "tensorrt"])

    assert result.exit_code == 1
    assert result.stderr.startswith("error: tensorrt needs a CUDA device: ")
    assert engines(held_to) == []


def test_a_bundle_is_refused_before_the_machine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calipso_runtime.engines.families.importlib.util.find_spec", lambda _name: None)

    result = CliRunner().invoke(calipso, ["build", str(tmp_path / "nowhere.calipso")])

    assert (result.exit_code, "nowhere.calipso" in result.stderr) == (1, True)


def test_the_command_tells_what_it_built(gpu: Gpu, held_to: Path, tmp_path: Path) -> None:
    arguments = ["build", str(held_to), "--batch", "1", "--batch", "2,4,8", "--log", str(tmp_path / "trt.log")]

    result = CliRunner().invoke(calipso, arguments)

    assert result.exit_code == 0, result.output
    assert "TensorRT 10.3.0 on Stand-in GPU, built in" in result.output
    assert "batch 4: median" in result.output
    assert "parity: passed" in result.output
    assert "warning: a warning of the builder" in result.stderr
    assert "[WARNING] a warning of the builder" in (tmp_path / "trt.log").read_text()


def test_the_command_gives_the_record_as_json(gpu: Gpu, held_to: Path) -> None:
    result = CliRunner().invoke(calipso, ["build", str(held_to), "--batch", "1", "--json", "--builds", "2"])

    record = json.loads(result.stdout)
    assert record["machine"]["gpu"] == "Stand-in GPU"
    assert len(record["builds"]) == 2


def test_the_command_prints_the_equivalent_of_trtexec_without_a_gpu(held_to: Path) -> None:
    result = CliRunner().invoke(calipso, ["build", str(held_to), "--batch", "1,2,4", "--print-trtexec"])

    assert result.exit_code == 0, result.output
    assert "--maxShapes=image:4x3x16x16" in result.output


@pytest.mark.parametrize("arguments", [["--batch", "x"], ["--level", "9"], ["--dla", "0"], ["--builds", "0"]])
def test_bad_options_are_bad_usage(gpu: Gpu, held_to: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(calipso, ["build", str(held_to), *arguments])

    assert (result.exit_code, engines(held_to)) == (2, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_soon_keeps_what_it_measured_and_leaves_nothing_else(
    held_to: Path, stand_in_library: Path, tmp_path: Path, number: int
) -> None:
    cache = tmp_path / "measured.timing"
    command = [sys.executable, ON_GPU, stand_in_library, "build", held_to, "--timing-cache", cache]
    environment = {**os.environ, "SLOW_STEP_S": "0.02"}
    with child(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        time.sleep(0.2)
        assert any(name.startswith(".partial-") for name in engines(held_to))
        start = time.perf_counter()
        os.kill(process.pid, number)
        code_left = process.wait(timeout=30)

    assert code_left == 130
    assert time.perf_counter() - start < 10
    assert len(cache.read_bytes()) > 1
    assert engines(held_to) == []


def _until(condition) -> None:
    deadline = time.perf_counter() + 30
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.01)


def test_a_second_build_of_the_same_bundle_waits_for_no_one(gpu: Gpu, held_to: Path) -> None:
    gpu.faults.steps, gpu.faults.step_s = 100, 0.02
    first = threading.Thread(target=build, args=(held_to, SMALL), kwargs={"report": quiet})
    first.start()
    _until(lambda: any(name.startswith(".partial-") for name in engines(held_to)))

    with pytest.raises(EngineBuildError, match="is building into"):
        build(held_to, SMALL, report=quiet)
    first.join()

    assert len(engines(held_to)) == 2
    assert engines_folder(open_bundle(held_to)).is_dir()


def test_left_overs_of_a_build_that_was_killed_are_removed(gpu: Gpu, held_to: Path) -> None:
    left = held_to / "engines" / ".partial-of-another-time"
    left.mkdir(parents=True)
    (left / "model.plan").write_bytes(b"half a plan")

    build(held_to, SMALL, report=quiet)

    assert not left.exists()


def test_a_driver_that_is_too_old_for_tensorrt_is_told(gpu: Gpu, held_to: Path) -> None:
    gpu.faults.failing.add("start")

    with pytest.raises(BackendUnavailableError, match=r"TensorRT 10\.3\.0 does not start on a driver for CUDA 13\.0: "):
        build(held_to, SMALL, report=quiet)


def test_tensorrt_without_its_libraries_is_told(gpu: Gpu, held_to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'calipso\[trt\]'; on a Jetson it"):
        build(held_to, SMALL, report=quiet)
