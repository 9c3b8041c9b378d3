"""TensorRT for RTX compiles what the exporter writes, in every precision; it needs no GPU."""

import shutil
from pathlib import Path

import onnx
import pytest
from export_samples import VIT_VISION
from precision_samples import ExportLow

from calipso_export.forms.standard_attention import FIRST_OPSET
from calipso_export.precision import PRECISIONS
from calipso_runtime.engines.ahead import compile_ahead
from calipso_runtime.engines.families import capabilities_of
from calipso_runtime.engines.layers import LayerReport
from calipso_runtime.engines.options import AHEAD_PROFILES, BuildOptions
from calipso_runtime.graph_file import MODEL_FILE
from needs import NEEDS_RTX

pytestmark = NEEDS_RTX

# Bundles that the quick tests have made anyway.
QUICK = ("fp32", "fp16", "int8")
# The two precisions differ in ONNX Runtime's graph alone.
SAME_GRAPH = {"int8-dynamic": "int8-weights"}
EVERY = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in PRECISIONS
    if name not in SAME_GRAPH
]


@pytest.mark.parametrize("precision", EVERY)
def test_a_bundle_compiles_for_every_gpu_that_its_precision_runs_on(
    low_bundle: ExportLow, bundle: Path, tmp_path: Path, precision: str
) -> None:
    source = bundle if precision == "fp32" else low_bundle(precision)
    own = Path(shutil.copytree(source, tmp_path / "own.calipso"))

    finished = compile_ahead(own, BuildOptions(), report=lambda *_: None)

    record = finished.plan.record
    assert record.compiled_for == capabilities_of(None, precision)
    assert (finished.checks.failures, record.parity) == ((), "unverified")
    assert record.layers["is_detailed"]
    assert [kind for kind in record.layers["products"].values() if " x " in kind] == []
    # An engine of int8-weights multiplies in fp32, and has to dequantise them.
    assert precision == "int8-weights" or LayerReport(**record.layers).dequantised == {}
    if precision in ("fp16", "bf16"):
        assert (record.layers["unfused"], record.layers["untold"]) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8-fp16", "fp8"])
def test_every_block_is_one_kernel_where_attention_is_one_operator(
    low_bundle: ExportLow, tmp_path: Path, precision: str
) -> None:
    own = Path(shutil.copytree(low_bundle(precision, FIRST_OPSET), tmp_path / "own.calipso"))
    operators = [node.op_type for node in onnx.load(own / MODEL_FILE).graph.node]
    blocks = operators.count("Attention")

    layers = compile_ahead(own, BuildOptions(profiles=AHEAD_PROFILES), report=lambda *_: None).plan.record.layers

    assert blocks == VIT_VISION["layers"]
    assert (layers["fused"], layers["unfused"], layers["untold"]) == (blocks * len(AHEAD_PROFILES), [], [])
