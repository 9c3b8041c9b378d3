"""TensorRT for RTX compiles what the exporter writes, in every precision; it needs no GPU."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from precision_samples import ExportLow

from calipso_export.precision import PRECISIONS
from calipso_runtime.engines.ahead import compile_ahead
from calipso_runtime.engines.families import capabilities_of
from calipso_runtime.engines.options import BuildOptions

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is missing: pip install '.[rtx]'"
    ),
]

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
    # None of them has weights that are restored at run time.
    assert [kind for kind in record.layers["products"].values() if " x " in kind] == []
    if precision in ("fp16", "bf16"):
        assert (record.layers["unfused"], record.layers["untold"]) == ([], [])
