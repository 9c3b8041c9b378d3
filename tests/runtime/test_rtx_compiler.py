"""Real builds by TensorRT for RTX, which need no GPU: bundles of each precision, and what ends a build."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import rtx_samples
from click.testing import CliRunner

from calipso_runtime.cli import calipso
from calipso_runtime.engines.ahead import compile_ahead
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.engines.plans import read_plan
from calipso_runtime.engines.workplace import Finished
from calipso_runtime.errors import EngineBuildError
from needs import NEEDS_RTX

pytestmark = NEEDS_RTX

# More than one row even at the smallest batch: for one row the compiler writes products as sums.
SMALL = BuildOptions(profiles=(BatchRange.parse("2,4,8"),))
PRODUCTS = [f"tower.{name}/MatMul" for name in ("embed", "block.q", "block.k", "block.v", "block.out")]
# By precision: type of the products with constants, and what else may be found.
EXPECTED = {
    "fp32": ("fp32", None),
    "fp16": ("fp16", 1),
    "bf16": ("bf16", 1),
    "int8": ("int8", None),
    "int8-fp16": ("int8", 1),
    "fp8": ("fp8", 1),
}


def quiet(what: str, done: int, total: int) -> None:
    pass


def compiled(folder: Path, precision: str, capability: str | None) -> Finished:
    path = rtx_samples.write_bundle(folder / "bundle", rtx_samples.attention_model(precision), precision=precision)
    return compile_ahead(path, SMALL, capability=capability, report=quiet)


def left(bundle: Path) -> list[str]:
    return sorted(path.name for path in (bundle / "engines").iterdir()) if (bundle / "engines").exists() else []


@pytest.mark.parametrize("precision", EXPECTED)
def test_each_precision_compiles_for_all_its_gpus_and_multiplies_in_its_type(tmp_path: Path, precision: str) -> None:
    finished = compiled(tmp_path, precision, None)

    kind, fused = EXPECTED[precision]
    record = finished.plan.record
    assert finished.checks.failures == ()
    assert {node: record.layers["products"][node] for node in PRODUCTS} == dict.fromkeys(PRODUCTS, kind)
    assert record.layers["products"]["head/MatMul"] == "fp32"
    assert [(each["name"], each["dtype"], *each["shape"]) for each in record.tensors] == [
        ("image", "float32", None, 3, 16, 16),
        ("logits", "float32", None, 7),
    ]
    if fused is not None:
        assert (record.layers["fused"], record.layers["unfused"]) == (fused, [])
    assert finished.checks.warnings == ("answers unverified: no GPU has run this engine yet",)


def test_the_command_names_what_it_compiled_for(tmp_path: Path) -> None:
    path = rtx_samples.write_bundle(tmp_path / "b", rtx_samples.attention_model("fp16"))
    arguments = ["build", str(path), "--engine", "tensorrt-rtx", "--capability", "sm89,sm120", "--batch", "2,4,8"]

    result = CliRunner().invoke(calipso, arguments)

    assert result.exit_code == 0, result.output
    assert re.match(r"TensorRT for RTX 1\.\d+\.\d+\.\d+ for sm89, sm120, built in \d+ s\n", result.stdout)
    assert "1 fused attention kernels" in result.stdout
    assert "parity: unverified" in result.stdout


def test_a_kit_with_a_ready_engine_is_made_without_a_gpu(checkable: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    wheel = tmp_path / "calipso-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("calipso_runtime/__init__.py", "")
    build = ["build", str(path), "--engine", "tensorrt-rtx", "--capability", "sm86,sm120"]
    ship = ["ship", str(path), "--target", "rtx", "--with-engines", "--wheel", str(wheel), "-o", str(tmp_path / "kit")]

    results = [CliRunner().invoke(calipso, command) for command in (build, ship)]

    assert [result.exit_code for result in results] == [0, 0], [result.output for result in results]
    (record,) = (tmp_path / "kit" / "bundle" / "engines").glob("*.json")
    version = read_plan(record).record.machine.tensorrt
    assert record.name == f"rtx-sm86-sm120-{version}.json"
    assert f"pinned=tensorrt-rtx=={version}\n" in (tmp_path / "kit" / "install.sh").read_text()


@pytest.mark.parametrize("precision", ["fp16", "int8-fp16"])
@pytest.mark.parametrize("capability", ["sm75", "sm75,sm89"])
def test_turing_gets_the_products_of_the_head_as_convolutions(tmp_path: Path, precision: str, capability: str) -> None:
    finished = compiled(tmp_path, precision, capability)

    layers = finished.plan.record.layers
    assert finished.checks.failures == ()
    assert [each["kind"] for each in layers["layers"] if each["name"].startswith("head/MatMul")] == ["correlation"]
    assert layers["products"]["head/MatMul"] == "fp32"
    assert [(each["name"], *each["shape"]) for each in finished.plan.record.tensors][1:] == [("logits", None, 7)]


def test_other_gpus_keep_the_products_of_the_head_as_they_are(tmp_path: Path) -> None:
    layers = compiled(tmp_path, "fp16", "sm89").plan.record.layers["layers"]

    assert [each["kind"] for each in layers if each["name"].startswith("head/MatMul")] == ["gemm"]


def test_what_turing_lacks_is_refused_by_the_compiler_with_the_node(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match=r"for sm75: .*'tower.*/MatMul.*' for Turing \(SM75\): FP32 GEMM"):
        compiled(tmp_path, "fp32", "sm75")

    assert left(tmp_path / "bundle") == []


def test_a_graph_that_says_less_than_its_manifest_is_refused(tmp_path: Path) -> None:
    path = rtx_samples.write_bundle(tmp_path / "b", rtx_samples.attention_model("fp32"), precision="fp16")

    with pytest.raises(EngineBuildError, match="no layer computes in fp16, which is the precision of the graph"):
        compile_ahead(path, SMALL, capability="sm89", report=quiet)


def test_a_graph_that_the_parser_refuses_is_told_with_the_node(tmp_path: Path) -> None:
    model = rtx_samples.attention_model("fp16")
    model.graph.node[0].op_type = "Unknown"
    path = rtx_samples.write_bundle(tmp_path / "b", model)

    with pytest.raises(EngineBuildError, match=r"cannot read .*node tower/Cast \(Unknown\)"):
        compile_ahead(path, SMALL, capability="sm89", report=quiet)


def test_a_graph_that_crashes_the_compiler_is_one_error(tmp_path: Path) -> None:
    path = rtx_samples.write_bundle(tmp_path / "b", rtx_samples.crashing_model())
    options = BuildOptions(profiles=(BatchRange.parse("1"),))

    with pytest.raises(EngineBuildError, match=r"crashed \(SIG\w+\) while it built|not supported"):
        compile_ahead(path, options, capability="sm89", report=quiet)

    assert left(path) == []


def test_a_disk_that_fills_up_while_the_plan_is_written_leaves_nothing(tmp_path: Path) -> None:
    path = rtx_samples.write_bundle(tmp_path / "b", rtx_samples.attention_model("fp16"))
    command = [sys.executable, "-m", "calipso_runtime", "build", str(path), "--capability", "sm89", "--batch", "2"]

    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )

    assert result.returncode == 1, result.stderr
    assert re.match(r"error: the engine cannot be written to .*: File too large\n$", result.stderr)
    assert left(path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("of_compiler", "number", "code", "says"),
    [
        (False, signal.SIGINT, 130, "^$"),
        (True, signal.SIGKILL, 1, "^error: TensorRT for RTX was killed while it built an engine from .*memory"),
    ],
)
def test_a_build_that_is_ended_in_the_middle_leaves_nothing(
    tmp_path: Path, of_compiler: bool, number: int, code: int, says: str
) -> None:
    path = rtx_samples.write_bundle(tmp_path / "b", rtx_samples.deep_model(48))
    command = [sys.executable, "-m", "calipso_runtime", "build", str(path), "--capability", "sm89"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.perf_counter() + 60
        # The compiler itself is at work, and not only the parser.
        while not any("Computing costs" in log.read_text() for log in path.glob("engines/.partial-*/compiler.log")):
            assert time.perf_counter() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        (compiler,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        start = time.perf_counter()
        os.kill(compiler if of_compiler else process.pid, number)
        code_left = process.wait(timeout=30)
        assert process.stderr is not None
        said = process.stderr.read()

    assert code_left == code
    assert re.search(says, said)
    assert time.perf_counter() - start < 5
    assert not Path(f"/proc/{compiler}").exists()
    assert left(path) == []
