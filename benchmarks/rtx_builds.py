"""What TensorRT for RTX makes of full-size models, compiled ahead of time on this machine: no GPU runs anything.

    python -m benchmarks.rtx_builds [--model ViT-B-32 ...] [--precision fp16 ...] [--opset 23]

Random weights and text features. Each engine is compiled in a process of its own, for every GPU that the precision runs
on, with the default batch sizes. A row is written after each build; a row that is there already is not built again.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import RESULTS, ROOT, keep
from benchmarks.families import prepared
from calipso_bench.environment import commit, environment
from calipso_export import ExportConfig, export
from calipso_export.choices import OPSETS
from calipso_export.precision import PRECISIONS as ALL_PRECISIONS
from calipso_runtime.commands.progress_bars import progress_bars
from calipso_runtime.engines.ahead import compile_ahead
from calipso_runtime.engines.layers import LayerReport
from calipso_runtime.engines.options import AHEAD_PROFILES, BuildOptions
from calipso_runtime.errors import CalipsoError

MODELS = (
    "ViT-B-32",
    "RN50",
    "ViT-B-16",
    "ViT-B-16-SigLIP",
    "MobileCLIP-S1",
    "convnext_base",
    "EVA02-B-16",
    "ViT-L-14",
)
PRECISIONS = ("fp32", "fp16", "int8", "fp8")
_PATH = RESULTS / "rtx-builds.json"
_OPSET, _MIB = 18, 1024


def main() -> int:
    """Export and compile each model in each precision, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--opset", type=int, choices=OPSETS, help="Instead of the oldest that has the precision.")
    parser.add_argument("--compile", type=Path, metavar="BUNDLE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compile is not None:
        print(json.dumps(compiled(arguments.compile)))
        return 0
    rows = json.loads(_PATH.read_text(encoding="utf-8"))["rows"] if _PATH.is_file() else []
    done = {(row["model"], row["precision"]) for row in rows if row.get("opset") == arguments.opset}
    for model in arguments.model:
        missing = [precision for precision in arguments.precision if (model, precision) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            inputs = prepared(model, folder)
            for precision in missing:
                row = row_of(inputs, precision, folder, arguments.opset)
                rows.append(row)
                rows.sort(key=_place)
                document = {
                    "schema_version": 1,
                    "what": "engines of full-size models by TensorRT for RTX, compiled ahead of time; none was run",
                    "environment": environment(),
                    "rows": rows,
                }
                keep(_PATH, document)
                print(f"{model}, {precision}: {in_words(row)}", flush=True)
    return 0


def row_of(inputs: Mapping[str, Any], precision: str, folder: Path, opset: int | None) -> dict[str, Any]:
    """Export a model in a precision, and compile it in a process of its own."""
    about = {"model": inputs["model"], "precision": precision, "opset": opset, "commit": commit()}
    try:
        bundle = exported(inputs, precision, folder, opset)
    except CalipsoError as error:
        return {**about, "failed": f"export: {error}"}
    command = [sys.executable, "-m", "benchmarks.rtx_builds", "--compile", str(bundle)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        return {**about, "failed": f"build: {(run.stderr.strip().splitlines() or ['no reason given'])[-1]}"}
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return {**about, **found}


def exported(inputs: Mapping[str, Any], precision: str, folder: Path, opset: int | None) -> Path:
    """Write a bundle of random weights; whether it passes its gates is another measurement."""
    output = folder / f"{precision}.calipso"
    config = ExportConfig(
        **inputs,
        calib_data=folder / "task" / "shots",
        precision=precision,
        opset=opset or max(_OPSET, ALL_PRECISIONS[precision].min_opset),
        repair_minutes=0,
        reference=False,
        force=True,
        output=output,
    )
    with progress_bars(Console(stderr=True), prefix=f"{config.model}, {precision}: ", transient=True) as bars:
        export(config, bars)
    return output


def compiled(bundle: Path) -> dict[str, Any]:
    """Compile a bundle, and return what came out. Its compiler is the only process that this one starts."""
    start = time.perf_counter()
    finished = compile_ahead(bundle, BuildOptions(profiles=AHEAD_PROFILES), report=lambda *_: None)
    seconds, record = time.perf_counter() - start, finished.plan.record
    layers = LayerReport(**record.layers)
    return {
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / _MIB,
        "onnx_bytes": sum(path.stat().st_size for path in bundle.glob("model.onnx*")),
        "plan_bytes": record.plan["bytes"],
        "compiled_for": [list(each) for each in record.compiled_for],
        "compiler": record.machine.tensorrt,
        "profiles": [dataclasses.asdict(each) for each in record.options.profiles],
        "layers": layers.count,
        "products": layers.heavy_types,
        "products_with_8_bit_weights": len(layers.quantised),
        "of_these_dequantised": len(layers.dequantised),
        "attentions_fused": layers.fused,
        "attentions_not_fused": len(layers.unfused),
    }


def in_words(row: Mapping[str, Any]) -> str:
    """A line for the terminal."""
    return str(row.get("failed") or f"{row['seconds']:.1f} s, {row['plan_bytes'] / 1e6:.0f} MB, {row['products']}")


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    known = row["model"] in MODELS
    return MODELS.index(row["model"]) if known else len(MODELS), PRECISIONS.index(row["precision"])


if __name__ == "__main__":
    sys.exit(main())
