"""How far MobileCLIP-S1 (FastViT) is from the matmul floor, what its forms gain, and which operators bound it.

    python -m benchmarks.mobileclip [--batch 1 2 8] [--seconds 8]

One thread, random weights, all contenders in turns in one process, with the peak measured before and after. Times are
of the processor, not of the clock on the wall: other programs may use the machine meanwhile.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import RESULTS
from benchmarks.forms import for_ort, session_of
from calipso_bench.environment import commit, environment
from calipso_bench.machine import matmul
from calipso_export import ExportConfig
from calipso_export.classifier import ClassifierModule
from calipso_export.clip import timm
from calipso_export.forms import ORT_FORMS
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.models import LoadedModel, load_model
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import trace
from calipso_export.steps.write import run_batch
from calipso_export.towers import Tower
from calipso_export.towers.timm_maps import FastVitTower

MODEL = "MobileCLIP-S1"
ALL, EAGER, OPENVINO, SHIPPED = "all forms", "eager", "openvino", "all forms, in parts as shipped"
LEFT_OUT = ("fused GELU", "fused attention", "depthwise convolutions that do not widen")
PROFILED = 15
Calls = Mapping[str, Callable[[], Any]]


def main() -> int:
    """Measure, profile, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = ExportConfig(
        model=MODEL,
        random_init=0,
        classes=tuple("abcd"),
        text_weights=Path("unused.npz"),
        outputs=("logits",),
        output=Path("unused"),
    )
    model = load_model(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs = graphs_of(model, config)
        sessions = {key: session_of(graph, folder) for key, graph in graphs.items()}
        compiled = openvino_of(graphs["portable"], folder)
        cells = []
        for batch in arguments.batch:
            image = np.random.default_rng(0).uniform(size=(batch, 3, *model.preprocess.size)).astype(np.float32)
            # One for each batch: an input that is shared cannot grow.
            request = compiled.create_infer_request()
            calls: dict[str, Callable[[], Any]] = {EAGER: functools.partial(eager, model.visual, image)}
            calls |= {key: functools.partial(session.run, None, {"image": image}) for key, session in sessions.items()}
            if batch > (part := run_batch(None, maps=1)):
                calls[SHIPPED] = functools.partial(in_parts, sessions[ALL], image, part)
            check_equal(sessions, compiled, image)
            calls[OPENVINO] = functools.partial(request.infer, [image], share_inputs=True)
            cells.append({"batch": batch, **sampled(calls, arguments.seconds)})
            print(f"batch {batch}", flush=True)
        document = {
            "schema_version": 1,
            "what": "MobileCLIP-S1 against the matmul peak; processor time, one thread, in turns",
            "model": MODEL,
            "flops_per_image": flops(model),
            "commit": commit(),
            "environment": environment(),
            "cells": cells,
            "profile": profile(graphs[ALL], folder, model.preprocess.size),
        }
    path = RESULTS / "mobileclip.json"
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {path.name}")
    return 0


class Unfolded(FastVitTower):
    """With one convolution for each bundle of branches, which timm does by itself, and nothing else folded."""

    @staticmethod
    def _fold(trunk: nn.Module) -> None:
        timm.utils.reparameterize_model(trunk, inplace=True)


def graphs_of(model: LoadedModel, config: ExportConfig) -> dict[str, ir.Model]:
    """ONNX Runtime's graph with all forms, without each, over timm's own norms and scales; and the portable one."""

    def traced(tower: type[Tower]) -> ir.Model:
        module = ClassifierModule(tower(model.visual, with_tokens=False), head, outputs=("logits",)).eval()
        return trace(module, model, config)

    width = model.architecture["embed_dim"]
    text = nn.functional.normalize(torch.randn(4, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    head = ZeroShotHead(text, scale=model.scale)

    folded = traced(FastVitTower)
    graphs = {ALL: for_ort(folded.clone())}
    for name in LEFT_OUT:
        forms = {key: form for key, form in ORT_FORMS.items() if key != name}
        graphs[f"without {name}"] = for_ort(folded.clone(), ort=forms)
    graphs["without norms and scales folded"] = for_ort(traced(Unfolded))
    graphs["portable"] = optimise(folded).portable
    return graphs


def openvino_of(graph: ir.Model, folder: Path) -> Any:
    """The portable graph, on one thread."""
    import openvino

    path = folder / "portable.onnx"
    ir.save(graph, path)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(str(path), "CPU", settings)


def eager(visual: nn.Module, image: Any) -> torch.Tensor:
    """open_clip's own tower."""
    with torch.inference_mode():
        return cast("torch.Tensor", visual(torch.from_numpy(image)))


def in_parts(session: onnxruntime.InferenceSession, image: Any, part: int) -> None:
    """A batch as the runtime asks it."""
    for first in range(0, len(image), part):
        session.run(None, {"image": image[first : first + part]})


def check_equal(sessions: Mapping[str, onnxruntime.InferenceSession], compiled: Any, image: Any) -> None:
    """All contenders give the logits of the graph without any form."""
    wanted = sessions["portable"].run(None, {"image": image})[0]
    found = {key: session.run(None, {"image": image})[0] for key, session in sessions.items()}
    found[OPENVINO] = compiled([image])[0]
    for name, values in found.items():
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-4 * float(np.abs(wanted).max()), err_msg=name)


def sampled(calls: Calls, seconds: float) -> dict[str, Any]:
    """Samples of processor time in turns, and the peak around them."""
    peaks = [matmul.by_engine(1, clock=time.process_time)]
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    started = time.process_time()
    while time.process_time() - started < seconds * len(calls):
        for name, call in calls.items():
            call()
            before = time.process_time()
            call()
            samples[name].append(1e3 * (time.process_time() - before))
    peaks.append(matmul.by_engine(1, clock=time.process_time))
    return {"samples_ms": samples, "peaks_gflops": peaks}


def flops(model: LoadedModel) -> int:
    """Of the shipped tower, whose branches are one convolution each: what there is to compute at least."""
    tower = model.tower(model.visual, with_tokens=False)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        tower(torch.zeros(1, 3, *model.preprocess.size))
    return int(counter.get_total_flops())


def profile(graph: ir.Model, folder: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Median microseconds of every kind of operator in one pass over one picture, by ONNX Runtime's profiler."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ir.save(graph, folder / "graph.onnx")
    session = onnxruntime.InferenceSession(str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).uniform(size=(1, 3, *size)).astype(np.float32)
    for _ in range(PROFILED):
        session.run(None, {"image": image})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    optimised = {node.name: node for node in onnx.load(options.optimized_model_filepath).graph.node}
    took: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            took.setdefault(name, []).append(event["dur"])
            kinds[name] = kind_of(event["args"], optimised.get(name))
    total: dict[str, dict[str, Any]] = {}
    for name, samples in took.items():
        found = total.setdefault(kinds[name], {"kind": kinds[name], "nodes": 0, "us": 0.0})
        found["nodes"] += 1
        found["us"] += statistics.median(samples)
    return sorted(total.values(), key=lambda each: -each["us"])


def kind_of(arguments: Mapping[str, Any], node: onnx.NodeProto | None) -> str:
    """The operator; of a convolution also its kernel, and whether it is depthwise and in blocks of channels."""
    operator = str(arguments["op_name"])
    if operator != "Conv" or node is None:
        return operator
    _, kernel, *_ = [next(iter(each.values())) for each in arguments["input_type_shape"]]
    depthwise = ", depthwise" if kernel[1] == 1 and kernel[0] > 1 else ""
    blocked = "" if "nchwc" in node.domain else ", not blocked"
    return f"Conv {kernel[2]}x{kernel[3]}{depthwise}{blocked}"


if __name__ == "__main__":
    sys.exit(main())
