"""One model of each family through every precision's gates, and its times on this machine: full size, random weights.

    python -m benchmarks.families [--model RN50 ...] [--repair-minutes 1]

Text features are random too, so that no tokenizer is needed. A row is written after each export; what is there
already is not measured again, but for what failed with less time to repair it.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import RESULTS, keep
from benchmarks.forms import timed
from benchmarks.precision_planted import drawn
from benchmarks.precision_speed import ENGINES, opened_on
from calipso_bench.environment import commit, environment
from calipso_export import ExportConfig, export
from calipso_export.clip import open_clip
from calipso_export.models import load_model
from calipso_export.precision import PRECISIONS
from calipso_runtime.commands.progress_bars import progress_bars
from calipso_runtime.errors import CalipsoError
from calipso_runtime.parity import FailedParityError

# In the order in which they are measured.
MODELS = {
    "MobileCLIP2-S0": "fastvit",
    "ViT-S-32-alt": "vit",
    "convnext_tiny": "convnext",
    "ViTamin-S": "timm-vit, convolutional stem",
    "vit_medium_patch16_gap_256": "timm-vit",
    "vit_relpos_medium_patch16_cls_224": "timm-vit, relative positions",
    "ViT-B-32-SigLIP2-256": "timm-vit, attention pool",
    "RN50": "resnet",
    "PE-Core-T-16-384": "eva, attention pool",
    "coca_ViT-B-32": "coca",
    "EVA02-B-16": "eva",
    "swin_base_patch4_window7_224": "swin",
}
# All models in the first pair, then all in the next.
PASSES = (("fp32", "int8"), ("int8-dynamic", "fp16"), ("bf16", "fp8"), ("int8-weights", "int8-fp16"))
TIMED = PASSES[0]
# Convolutions take bfloat16 from this opset on.
OPSET, OPSET_OF_BF16 = 18, 22
CLASSES, PICTURES, SEED = 10, 12, 0


def main() -> int:
    """Export every model in every precision, time what the engines run, and write what became of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--repair-minutes", type=float, default=1.0)
    arguments = parser.parse_args()
    path = RESULTS / "families.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": [], "cells": []}
    done = {(row["model"], row["precision"]) for row in document["rows"] if is_done(row, arguments.repair_minutes)}
    is_timed = {cell["model"] for cell in document["cells"]}
    for model, precisions in ((model, precisions) for precisions in PASSES for model in arguments.model):
        wanted = [precision for precision in precisions if (model, precision) not in done]
        for kind, found in measured(
            model, wanted, arguments.repair_minutes, times=precisions == TIMED and model not in is_timed
        ):
            document[kind] = [*(each for each in document[kind] if not is_same(each, found)), found]
            written = {
                "schema_version": 1,
                "what": "one full-size model of each family in every precision, verified against eager fp32, and timed",
                "classes": CLASSES,
                "pictures": PICTURES,
                "commit": commit(),
                "environment": environment(),
                "rows": document["rows"],
                "cells": document["cells"],
            }
            keep(path, written, indent=1)
            print(f"{model}, {found.get('precision', 'times')}: {found.get('status', 'measured')}", flush=True)
    return 0


def measured(
    model: str, precisions: list[str], repair_minutes: float, *, times: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("rows", what became of an export) for each precision, and ("cells", samples), as they come."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not precisions and not times:
            return
        inputs = prepared(model, folder)
        for precision in precisions:
            yield "rows", exported(inputs, model, precision, repair_minutes, folder)
        if times:
            for precision in TIMED:
                if not bundle_of(precision, folder).is_dir():
                    exported(inputs, model, precision, 0, folder)
            yield "cells", {"model": model, "threads": 1, "batch": 1, "samples_ms": samples(inputs, folder)}


def prepared(model: str, folder: Path) -> dict[str, Any]:
    """Pictures without labels, which random features could only guess, random features, and what all exports share."""
    names, held_out = drawn(folder / "task", PICTURES)
    classes = names[:CLASSES]
    for path in held_out.glob("*/*.png"):
        shutil.move(path, folder / f"{path.parent.name}-{path.name}")
    pictures = folder / "pictures"
    pictures.mkdir()
    for path in folder.glob("*.png"):
        shutil.move(path, pictures / path.name)
    width = open_clip.get_model_config(model)["embed_dim"]
    weights = np.random.default_rng(SEED).standard_normal((CLASSES, width), dtype=np.float32)
    np.savez(folder / "text.npz", weights=weights, classes=np.array(classes))
    return {
        "model": model,
        "random_init": SEED,
        "classes": classes,
        "text_weights": folder / "text.npz",
        "cache": False,
        "calip": False,
        "verify_data": pictures,
    }


def is_done(row: Mapping[str, Any], repair_minutes: float) -> bool:
    """Whether a result stands: what failed may pass with more time."""
    return bool(row["status"] == "passed" or row["repair_minutes"] >= repair_minutes)


def is_same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results are of the same measurement."""
    return (row["model"], row.get("precision")) == (other["model"], other.get("precision"))


def bundle_of(precision: str, folder: Path) -> Path:
    """Where a precision's bundle is written."""
    return folder / f"{precision}.calipso"


def exported(inputs: dict[str, Any], model: str, precision: str, repair_minutes: float, folder: Path) -> dict[str, Any]:
    """Export in a precision; what is not timed afterwards is removed."""
    started = time.perf_counter()
    row: dict[str, Any] = {
        "model": model,
        "family": MODELS[model],
        "precision": precision,
        "repair_minutes": repair_minutes,
    }
    config = ExportConfig(
        **inputs,
        calib_data=folder / "task" / "shots",
        precision=precision,
        opset=max(OPSET_OF_BF16 if precision == "bf16" else OPSET, PRECISIONS[precision].min_opset),
        repair_minutes=repair_minutes,
        output=bundle_of(precision, folder),
        force=True,
        overwrite=True,
    )
    with progress_bars(Console(stderr=True), prefix=f"{model}, {precision}: ", transient=True) as bars:
        try:
            parity = export(config, bars)[1]
        except FailedParityError as error:
            parity = error.parity
        except CalipsoError as error:
            return {**row, "status": "refused", "failures": [str(error)], "seconds": time.perf_counter() - started}
    repair = parity.document.get("repair") or {"pinned": [], "trials": 0, "worst_layers": []}
    if precision not in TIMED:
        shutil.rmtree(config.output, ignore_errors=True)
    return {
        **row,
        "status": parity.status,
        "failures": list(parity.failures),
        "worst": parity.document["worst"],
        "pinned": repair["pinned"],
        "worst_layers": repair["worst_layers"],
        "trials": repair["trials"],
        "seconds": time.perf_counter() - started,
    }


def samples(inputs: dict[str, Any], folder: Path) -> dict[str, list[float]]:
    """Of one picture, one thread: eager PyTorch's tower and the bundles on every engine, in turns."""
    torch.set_num_threads(1)
    visual = load_model(ExportConfig(**inputs, output=Path("unused"))).visual.eval()
    with ExitStack() as stack:
        calls: dict[str, Any] = {}
        settings = None
        for engine in ENGINES:
            for precision in TIMED:
                if (opened := opened_on(engine, bundle_of(precision, folder), threads=1)) is not None:
                    classifier = stack.enter_context(opened)
                    calls[f"{precision} on {engine}"] = (classifier.run, ("logits",))
                    settings = classifier.manifest.preprocess
        if settings is None:
            return {}
        pixels = np.random.default_rng(SEED).uniform(size=(1, *settings.size, 3))
        image = ((pixels - settings.mean) / settings.std).transpose(0, 3, 1, 2).astype(np.float32)
        entrants = {name: partial(run, image, outputs) for name, (run, outputs) in calls.items()}
        with torch.inference_mode():
            entrants["eager"] = partial(visual, torch.from_numpy(image))
            return dict(timed(entrants, 1).samples_ms)


if __name__ == "__main__":
    sys.exit(main())
