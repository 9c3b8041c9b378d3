"""How much faster a full-size classifier answers in eight bits and in 16: random weights, every engine on this machine.

    python -m benchmarks.precision_speed [--model ViT-B-32 ViT-B-16 RN50]

The bundles that an export writes, loaded by the runtime; one thread, in turns with the fp32
bundle and eager PyTorch. Raw samples go to results/ after each model; those of models that are not asked for stay.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import RESULTS, ROOT, keep
from benchmarks.forms import timed
from calipso_bench.environment import commit, environment
from calipso_export import ExportConfig, export
from calipso_export.models import load_model
from calipso_runtime import Classifier, load
from calipso_runtime.commands.progress_bars import progress_bars
from calipso_runtime.errors import BackendError, BundleError

MODELS = ("ViT-B-32", "ViT-B-16", "RN50")
PRECISIONS = ("fp32", "bf16", "int8", "int8-dynamic")
ENGINES = ("ort", "openvino")
THREADS, BATCHES = (1,), (1, 8)
SEED = 0


def main() -> int:
    """Export, time in turns, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=MODELS)
    path = RESULTS / "precision-speed.json"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    for model in parser.parse_args().model:
        with tempfile.TemporaryDirectory() as folder:
            bundles = {precision: exported(model, precision, Path(folder)) for precision in PRECISIONS}
            found = [cell for threads in THREADS for cell in cells_of(model, bundles, threads)]
        cells = sorted(
            [*(cell for cell in cells if cell["model"] != model), *found],
            key=lambda cell: (MODELS.index(cell["model"]), cell["threads"], cell["batch"]),
        )
        document = {
            "schema_version": 2,
            "what": "one batch, preprocessed, to embedding and logits; each precision on each engine, in turns",
            "environment": environment(),
            "cells": cells,
        }
        keep(path, document)
    print(f"wrote {path.name}")
    return 0


def exported(model: str, precision: str, folder: Path) -> Path:
    """A bundle of random weights; whether it passes its gates is another measurement."""
    task = folder / "task"
    if not task.is_dir():
        draw = [sys.executable, str(ROOT / "examples/shapes/draw.py"), "--out", str(task)]
        subprocess.run([*draw, "--shots", "1", "--held-out", "1"], check=True, capture_output=True)
    output = folder / f"{precision}.calipso"
    config = ExportConfig(
        **settings(model),
        calib_data=task / "shots",
        precision=precision,
        opset=22 if precision == "bf16" else 18,
        repair_minutes=0,
        force=True,
        output=output,
    )
    with progress_bars(Console(stderr=True), prefix=f"{model}, {precision}: ", transient=True) as bars:
        export(config, bars)
    return output


def settings(model: str) -> dict[str, Any]:
    """Of the model alone."""
    return {"model": model, "random_init": SEED, "classes": tuple("abcdefghij"), "cache": False, "calip": False}


def cells_of(model: str, bundles: dict[str, Path], threads: int) -> list[dict[str, Any]]:
    """Samples at every batch size, of eager PyTorch and of every bundle that an engine runs."""
    torch.set_num_threads(threads)
    visual = load_model(ExportConfig(**settings(model), output=Path("unused"))).visual.eval()
    cells = []
    with ExitStack() as stack:
        loaded: dict[str, Classifier] = {}
        for engine in ENGINES:
            for precision, path in bundles.items():
                if (opened := opened_on(engine, path, threads)) is not None:
                    loaded[f"{precision} on {engine}"] = stack.enter_context(opened)
        size = next(iter(loaded.values())).manifest.preprocess.size
        for batch in BATCHES:
            image = np.random.default_rng(0).uniform(-1, 1, (batch, 3, *size)).astype(np.float32)
            tensor = torch.from_numpy(image)
            with torch.inference_mode():
                calls: dict[str, Any] = {"eager": partial(visual, tensor)}
                calls |= {name: partial(each.run, image, ("logits",)) for name, each in loaded.items()}
                samples = timed(calls, batch).samples_ms
            place = {"model": model, "threads": threads, "batch": batch, "commit": commit()}
            cells.append({**place, "samples_ms": dict(samples)})
            print(f"{model}, {threads} threads, batch {batch}", flush=True)
    return cells


def opened_on(engine: str, path: Path, threads: int) -> Classifier | None:
    """A bundle in an engine, or None where that cannot run it."""
    try:
        return load(path, backend=engine, threads=threads)
    except (BackendError, BundleError) as error:
        print(f"{path.name} on {engine}: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
