"""What int8 keeps and costs on this CPU's instruction set, in every form that a CPU may load.

    python -m benchmarks.int8_cpu [--only agreement|speed]

The shipped model is exported twice, with pair-safe weights (the default) and with `--full-range`, and asked on the
held-out images of the drawn world, on each engine. ViT-B-32 with random weights is timed in turns with eager PyTorch
and its fp32 bundle. Results go to results/int8-<instruction set>.json; the tables show all of these files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console

from benchmarks import RESULTS, ROOT, keep
from benchmarks.forms import timed
from benchmarks.precision_speed import settings
from benchmarks.precision_trained import HELD_OUT, MODEL, SHOTS, last
from calipso_bench.environment import commit, environment
from calipso_export import ExportConfig, export
from calipso_export.models import load_model
from calipso_export.reverify import reverify
from calipso_runtime import Classifier, devices, load
from calipso_runtime.commands.progress_bars import progress_bars
from calipso_runtime.errors import CalipsoError

ENGINES = ("ort", "openvino")
RANGES = {"pair-safe": False, "full-range": True}
# What the version before pair-safe weights loaded: full-range weights, added up in 16 bits.
SATURATING = "full-range, saturating"
SPEED_MODEL = "ViT-B-32"


def main() -> int:
    """Export, verify on every engine, time in turns, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=("agreement", "speed"), help="Keep the rest of the last run.")
    only, path = parser.parse_args().only, RESULTS / f"int8-{instruction_set()}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"agreement": [], "cells": []}
    document: dict[str, Any] = {
        "schema_version": 1,
        "what": "int8 on one instruction set: agreement of the shipped model, and times of a full-size one",
        "instruction_set": instruction_set(),
        "commit": commit(),
        "environment": environment(),
    }
    with tempfile.TemporaryDirectory() as folder:
        held_out(Path(folder))
        document["agreement"] = before["agreement"] if only == "speed" else agreement(Path(folder))
        document["cells"] = before["cells"] if only == "agreement" else speed(Path(folder))
    keep(path, document)
    print(f"wrote {path.name}")
    return 0


def instruction_set() -> str:
    """Return the widest one that int8 products are computed with here: "vnni", "avx512", "avx2", or the machine's."""
    flags = devices.cpu_flags().split()
    if devices.has_vnni():
        return "vnni"
    return next((name for name, flag in (("avx512", "avx512bw"), ("avx2", "avx2")) if flag in flags), "other")


@contextmanager
def form(name: str) -> Iterator[None]:
    """Load bundles as `name` says: as this version does, or saturating as earlier versions did."""
    if name != SATURATING:
        yield
        return
    with mock.patch.object(devices, "adds_pairs_in_16_bits", return_value=False):
        yield


def held_out(folder: Path) -> None:
    """Draw the shots and the held-out images."""
    draw = [sys.executable, str(ROOT / "examples/shapes/draw.py"), "--out", str(folder / "task")]
    subprocess.run([*draw, "--shots", str(SHOTS), "--held-out", str(HELD_OUT)], check=True, capture_output=True)


def agreement(folder: Path) -> list[dict[str, Any]]:
    """Ask every form of the shipped model on each engine about the held-out images."""
    rows = []
    for name, full_range in RANGES.items():
        config = ExportConfig(
            model=str(MODEL / "shapes-vit.json"),
            checkpoint=MODEL / "shapes-vit.safetensors",
            classes=tuple((folder / "task" / "classes.txt").read_text(encoding="utf-8").splitlines()),
            templates="photo",
            shots=folder / "task" / "shots",
            verify_data=folder / "task" / "held-out",
            feature_cache=folder / "features",
            precision="int8",
            full_range=full_range,
            output=folder / f"{name}.calipso",
            force=True,
        )
        with progress_bars(Console(stderr=True), prefix=f"{name}: ", transient=True) as bars:
            export(config, bars)
            for loaded in (name, SATURATING) if full_range else (name,):
                rows += [answers(config, loaded, engine, bars) for engine in ENGINES]
    return rows


def answers(config: ExportConfig, name: str, engine: str, bars: Any) -> dict[str, Any]:
    """Hold one form on one engine against eager PyTorch."""
    with form(name):
        parity = reverify(
            config.output,
            data=config.verify_data,
            checkpoint=config.checkpoint,
            model=config.model,
            backend=engine,
            progress=bars,
        )
    accuracy, errors = parity.document["accuracy"], last(parity)["relative_logit_error"]
    print(f"{name} on {engine}: {parity.status}, mean error {errors['mean']:.1e}", flush=True)
    return {
        "form": name,
        "engine": engine,
        "status": parity.status,
        "images": accuracy["pictures"],
        "same_top1": parity.document["worst"]["same_top1"],
        "top1": accuracy["shipped"]["top1"],
        "drop": accuracy["drop"],
        "drop_interval_95": accuracy["drop_interval_95"],
        "relative_logit_error": {key: errors[key] for key in ("mean", "p99", "max")},
    }


def speed(folder: Path) -> list[dict[str, Any]]:
    """Sample ViT-B-32 in turns: eager PyTorch, the fp32 bundle and every form of int8, on each engine."""
    bundles = {"fp32": written(folder, "fp32", full_range=False)}
    bundles |= {name: written(folder, "int8", full_range=full) for name, full in RANGES.items()}
    bundles[SATURATING] = bundles["full-range"]
    visual = load_model(ExportConfig(**settings(SPEED_MODEL), output=Path("unused"))).visual.eval()
    cells = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with ExitStack() as stack:
            loaded = opened(bundles, threads, stack)
            size = next(iter(loaded.values())).manifest.preprocess.size
            for batch in (1, 8):
                image = np.random.default_rng(0).uniform(-1, 1, (batch, 3, *size)).astype(np.float32)
                with torch.inference_mode():
                    calls: dict[str, Any] = {"eager": partial(visual, torch.from_numpy(image))}
                    calls |= {name: partial(each.run, image, ("logits",)) for name, each in loaded.items()}
                    samples = timed(calls, batch).samples_ms
                cells.append({"model": SPEED_MODEL, "threads": threads, "batch": batch, "samples_ms": dict(samples)})
                print(f"{SPEED_MODEL}, {threads} threads, batch {batch}", flush=True)
    return cells


def opened(bundles: dict[str, Path], threads: int, stack: ExitStack) -> dict[str, Classifier]:
    """Load every form in every engine."""
    loaded = {}
    for engine in ENGINES:
        for name, path in bundles.items():
            with form(name):
                loaded[f"{name} on {engine}"] = stack.enter_context(
                    load(path, backend=engine, threads=threads, keep_optimised=False)
                )
    return loaded


def written(folder: Path, precision: str, *, full_range: bool) -> Path:
    """Export ViT-B-32 with random weights; whether it passes its gates is measured elsewhere."""
    output = folder / f"{SPEED_MODEL}-{precision}-{full_range}.calipso"
    config = ExportConfig(
        **settings(SPEED_MODEL),
        calib_data=folder / "task" / "shots",
        calib_pictures=30,
        precision=precision,
        full_range=full_range,
        repair_minutes=0,
        force=True,
        output=output,
    )
    with progress_bars(Console(stderr=True), prefix=f"{output.name}: ", transient=True) as bars:
        export(config, bars)
    return output


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CalipsoError as error:
        sys.exit(str(error))
