"""One configuration of the sweep that compiles, in this process: built, lowered to each precision, compiled."""

import dataclasses
import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.nn import functional

from benchmarks.sweep_one import CLASSES, SEED, loaded
from calipso_export import ExportConfig
from calipso_export.classifier import ClassifierModule
from calipso_export.forms import EIGHT_BIT_FORMS, PORTABLE_FORMS
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.models import LoadedModel
from calipso_export.precision import PRECISIONS
from calipso_export.precision.lower import lower
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import trace
from calipso_runtime.engines import layer_lists, layers
from calipso_runtime.engines.compiler_process import compile_plan
from calipso_runtime.engines.families import Capability, capabilities_of, sm
from calipso_runtime.engines.judge import Judge
from calipso_runtime.engines.options import AHEAD_PROFILES, BuildOptions
from calipso_runtime.errors import EngineBuildError, ModelError

NAMES = ("fp32", "fp16", "int8", "fp8")
# The oldest that has every one of them.
OPSET = 20
# Largest magnitudes of activations lie between these.
_RANGES = (0.5, 8.0)


def swept(name: str, layers: int | None) -> dict[str, Any]:
    """What became of one configuration, as JSON types."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, _ = loaded(name, layers, Path(folder))
        except ModelError as error:
            return {"status": "refused", "reason": str(error)}
        family = model.tower.family
        plain, narrow = graphs(model, Path(folder))
        # Neither the exporter nor the compiler needs PyTorch's weights any more.
        del model
        gc.collect()
        rows = {}
        for each in NAMES:
            path = Path(folder) / each / "model.onnx"
            path.parent.mkdir()
            save(narrow if PRECISIONS[each].activations else plain, each, path)
            rows[each] = compiled(path, capabilities_of(None, each))
    failed = [row["refused"] for row in rows.values() if "refused" in row]
    status = {"status": "refused", "reason": failed[0]} if failed else {"status": "compiled"}
    return {**status, "family": family, "precisions": rows, "seconds": round(time.perf_counter() - started, 1)}


@torch.no_grad()
def graphs(model: LoadedModel, folder: Path) -> tuple[ir.Model, ir.Model]:
    """The classifier as the exporter makes it, and as it makes it where products are in eight bits."""
    tower = model.tower(model.visual, with_tokens=False)
    torch.manual_seed(SEED)
    text = functional.normalize(torch.randn(CLASSES, int(model.architecture["embed_dim"])), dim=-1)
    head = ZeroShotHead(text, scale=model.scale, bias=model.bias)
    config = ExportConfig(model=model.name, random_init=SEED, classes=("a", "b"), output=folder / "unused")
    outputs = ("logits", "embedding")
    config = dataclasses.replace(config, outputs=outputs, opset=OPSET)
    traced = trace(ClassifierModule(tower, head, outputs=outputs).eval(), model, config)
    narrow = optimise(traced.clone(), portable={**PORTABLE_FORMS, **EIGHT_BIT_FORMS}).portable
    return optimise(traced).portable, narrow


def save(model: ir.Model, name: str, path: Path) -> None:
    """Write a graph in a precision."""
    precision = PRECISIONS[name]
    ranges = random_ranges(model.graph) if precision.activations else None
    ir.save(lower(model, precision, ranges=ranges, ort_forms={}).portable, path, external_data=f"{path.name}.data")


def random_ranges(graph: ir.Graph) -> dict[str, float]:
    """Return a range for every tensor, no two the same: layers of equal scales share constants in a plan."""
    names = dict.fromkeys(str(value.name) for node in graph for value in node.inputs if value is not None)
    ranges = np.random.default_rng(SEED).uniform(*_RANGES, len(names))
    return dict(zip(names, ranges.tolist(), strict=True))


def compiled(path: Path, capabilities: Sequence[Capability]) -> dict[str, Any]:
    """Compile a graph for all capabilities; where that fails, say which of them it compiles for, and why not."""
    work = path.parent / "work"
    work.mkdir()
    size = sum(each.stat().st_size for each in path.parent.glob("model.onnx*"))
    started = time.perf_counter()
    try:
        plan = compile_plan(path, BuildOptions(profiles=AHEAD_PROFILES), capabilities, work, lambda *_: None)
    except EngineBuildError as error:
        found = refused(path, capabilities)
        if len(found["builds_for"]) == len(capabilities):
            # The graph is not the reason: memory ran out, for example. The next run does a broken row again.
            raise
        # The folder has another name in every run: with it, no two rows would share a reason.
        return {**found, "refused": str(error).replace(str(path.absolute()), "the graph"), "onnx_bytes": size}
    seconds = time.perf_counter() - started
    made_of = layers.report(layer_lists.read_listing(plan.listing))
    return {
        "parses": True,
        "builds_for": [sm(each) for each in capabilities],
        "fused": made_of.fused,
        "unfused": len(made_of.unfused),
        "untold": len(made_of.untold),
        "products": dict(made_of.heavy_types),
        "quantised": len(made_of.quantised),
        "dequantised_at_run_time": len(made_of.dequantised),
        "onnx_bytes": size,
        "plan_bytes": plan.plan.stat().st_size,
        "build_seconds": round(seconds, 2),
        "compiler": plan.version,
    }


def refused(path: Path, capabilities: Sequence[Capability]) -> dict[str, Any]:
    """Ask for one capability at a time."""
    with Judge() as judge:
        verdicts = {sm(each): judge.judge(path, [each]).refusals for each in capabilities}
    parses = not any(each.by == "parser" for found in verdicts.values() for each in found)
    return {"parses": parses, "builds_for": [name for name, found in verdicts.items() if not found]}
