"""What each exact form gains: the same model with all forms, and with each one left out, in turns.

    python -m benchmarks.forms [--model ViT-B-32]

One thread, ONNX Runtime, random weights. Raw samples go to results/.
"""

import argparse
import functools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from rich.console import Console
from torch import nn

from benchmarks import RESULTS
from benchmarks.full_size import inputs
from calipso_bench.environment import commit, environment
from calipso_bench.sampling import Entrant, Tally, calls_per_turn, sample, timed_call
from calipso_export import ExportConfig
from calipso_export.classifier import ClassifierModule
from calipso_export.forms import ORT_FORMS, PORTABLE_FORMS, Form
from calipso_export.heads import calip, tip_adapter, zero_shot
from calipso_export.heads.calip import CalipHead, CalipParameters
from calipso_export.heads.tip_adapter import TipAdapterHead, TipAdapterParameters
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.models import LoadedModel, load_model
from calipso_export.precision import PRECISIONS
from calipso_export.precision.lower import lower
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import trace
from calipso_export.steps.write import run_batch
from calipso_runtime.commands.progress_bars import progress_bars

SECONDS = 5.0
BATCHES = (1, 8)
LARGE_BATCH = 32
CLASSES, SHOTS, POSITIONS, SCALE = 1000, 16, 49, 100.0
CALIP = CalipParameters(b2=1.0, b3=0.1)
TIP_ADAPTER = TipAdapterParameters(alpha=1.0, beta=5.5)
ALL = "all forms"
# ONNX Runtime's files hold references where it matters only to the disk; here each graph stands alone.
Graphs = Mapping[str, ir.Model]


def main() -> int:
    """Measure every group of graphs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="ViT-B-32")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        config = ExportConfig(**{**inputs(model, Path(folder)), "cache_file": None, "alpha": None, "beta": None})
        loaded = load_model(config)
        groups: dict[str, Callable[[], Graphs]] = {
            "forms": lambda: encoders(loaded, config),
            "last block": lambda: last_blocks(loaded, config),
            "head": lambda: heads(embed_dim(loaded)),
        }
        samples: list[dict[str, Any]] = []
        with progress_bars(Console(stderr=True)) as progress:
            for place, (name, make) in enumerate(groups.items()):
                progress("groups", place, len(groups))
                samples += measured(name, make(), Path(folder))
            samples += in_parts(loaded, config, Path(folder))
            progress("groups", len(groups), len(groups))
    document = {
        "schema_version": 1,
        "what": "each exact form left out, against all forms; ONNX Runtime, one thread, in turns",
        "model": model,
        "commit": commit(),
        "environment": environment(),
        "cells": samples,
    }
    path = RESULTS / f"forms-{model.lower()}.json"
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {path.name}")
    return 0


def encoders(model: LoadedModel, config: ExportConfig) -> Graphs:
    """ONNX Runtime's graph of the encoder with tokens: with all forms, and less each of them."""
    module = classifier(model, with_tokens=True, outputs=("logits", "tokens"))
    graphs = {ALL: for_ort(trace(module, model, with_outputs(config, "logits", "tokens")))}
    for name in (*PORTABLE_FORMS, *ORT_FORMS):
        graphs[f"without {name}"] = for_ort(
            trace(module, model, with_outputs(config, "logits", "tokens")),
            portable={key: form for key, form in PORTABLE_FORMS.items() if key != name},
            ort={key: form for key, form in ORT_FORMS.items() if key != name},
        )
    graphs["without any (the portable graph)"] = optimise(
        trace(module, model, with_outputs(config, "logits", "tokens")), portable={}
    ).portable
    return graphs


def for_ort(
    traced: ir.Model, *, portable: Mapping[str, Form] = PORTABLE_FORMS, ort: Mapping[str, Form] = ORT_FORMS
) -> ir.Model:
    """ONNX Runtime's graph with these forms."""
    return lower(optimise(traced, portable=portable).portable, PRECISIONS["fp32"], ranges=None, ort_forms=ort).ort


def last_blocks(model: LoadedModel, config: ExportConfig) -> Graphs:
    """Without CALIP: the last block for the class token alone, and for all tokens of which none is read."""
    config = with_outputs(config, "logits")
    return {
        name: for_ort(trace(classifier(model, with_tokens=with_tokens, outputs=("logits",)), model, config))
        for name, with_tokens in ((ALL, False), ("without the pooled last block", True))
    }


def classifier(model: LoadedModel, *, with_tokens: bool, outputs: tuple[str, ...]) -> ClassifierModule:
    """A model with a zero-shot head of a few classes, which costs nothing."""
    width = embed_dim(model)
    text = nn.functional.normalize(torch.randn(4, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    return ClassifierModule(
        model.tower(model.visual, with_tokens=with_tokens), ZeroShotHead(text, scale=model.scale), outputs=outputs
    ).eval()


def embed_dim(model: LoadedModel) -> int:
    """D, the width of the joint space."""
    return int(cast("Any", model.module).text_projection.shape[-1])


def with_outputs(config: ExportConfig, *outputs: str) -> ExportConfig:
    """The same export with other outputs."""
    return ExportConfig(**{**vars(config), "outputs": outputs})


class NaiveHead(nn.Module):
    """The heads by their published formulas, with one-hot values and the text seen through the image."""

    def __init__(self, text: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__()
        self.text, self.keys = nn.Parameter(text), nn.Parameter(keys)
        self.values = nn.Parameter(nn.functional.one_hot(labels, len(text)).float())

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B,D] and [B,P,D] -> [B,K]."""
        logits = zero_shot.reference(image, self.text, scale=SCALE)
        logits = logits + calip.reference(image, tokens, self.text, CALIP, scale=SCALE)
        return logits + tip_adapter.reference(image, self.keys, self.values, parameters=TIP_ADAPTER)


class FoldedHead(nn.Module):
    """The heads as they are shipped."""

    def __init__(self, text: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__()
        self.zero_shot, self.calip = ZeroShotHead(text, scale=SCALE), CalipHead(CALIP, scale=SCALE)
        self.tip_adapter = TipAdapterHead(keys, labels, classes=len(text), parameters=TIP_ADAPTER)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B,D] and [B,P,D] -> [B,K]."""
        return self.zero_shot(image) + self.calip(image, tokens, self.zero_shot.weight) + self.tip_adapter(image)  # type: ignore[no-any-return]


def heads(width: int) -> Graphs:
    """The whole head, as published and as shipped, over made-up features."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    text, keys = unit(CLASSES, width), unit(CLASSES * SHOTS, width)
    labels = torch.arange(CLASSES).repeat_interleave(SHOTS)
    example = (unit(2, width), unit(2, POSITIONS, width))
    batch = torch.export.Dim("batch")
    graphs = {}
    for name, module in (
        (ALL, FoldedHead(text, keys, labels)),
        ("the published formulas", NaiveHead(text, keys, labels)),
    ):
        with warnings.catch_warnings():
            # torch's exporter warns about its own internals.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                example,
                dynamo=True,
                opset_version=18,
                input_names=["image", "tokens"],
                output_names=["logits"],
                dynamic_shapes={"image": {0: batch}, "tokens": {0: batch}},
                verbose=False,
            )
        if program is None:
            message = "torch.onnx.export returned no program"
            raise RuntimeError(message)
        graphs[name] = for_ort(program.model, ort=ORT_FORMS if name == ALL else {})
    return graphs


def measured(group: str, graphs: Graphs, folder: Path) -> Iterator[dict[str, Any]]:
    """Samples of every graph of a group, in turns, at every batch size; all have to answer alike."""
    sessions = {name: session_of(graph, folder) for name, graph in graphs.items()}
    generator = np.random.default_rng(0)
    first = next(iter(sessions.values()))
    for batch in BATCHES:
        feed = {
            node.name: generator.standard_normal([batch, *node.shape[1:]], dtype=np.float32)
            for node in first.get_inputs()
        }
        if group == "head":
            feed = {name: values / np.linalg.norm(values, axis=-1, keepdims=True) for name, values in feed.items()}
        wanted = first.run(["logits"], feed)[0]
        for name, session in sessions.items():
            np.testing.assert_allclose(session.run(["logits"], feed)[0], wanted, rtol=1e-3, atol=1e-3, err_msg=name)
        tally = timed(
            {name: functools.partial(session.run, ["logits"], feed) for name, session in sessions.items()}, batch
        )
        yield {"group": group, "batch": batch, "threads": 1, "samples_ms": tally.samples_ms}


def in_parts(model: LoadedModel, config: ExportConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """A large batch in the parts that are run, and in one piece."""
    config = with_outputs(config, "logits", "tokens")
    module = classifier(model, with_tokens=True, outputs=("logits", "tokens"))
    session = session_of(for_ort(trace(module, model, config)), folder)
    size = run_batch(module.tower.rows, maps=1)
    image = np.random.default_rng(0).standard_normal((LARGE_BATCH, 3, *model.preprocess.size), dtype=np.float32)
    parts = np.array_split(image, -(-LARGE_BATCH // size))

    def run(pieces: Sequence[Any]) -> Any:
        return [session.run(["logits"], {"image": piece})[0] for piece in pieces]

    tally = timed({ALL: lambda: run(parts), "without parts": lambda: run([image])}, LARGE_BATCH)
    yield {"group": f"parts of {size}", "batch": LARGE_BATCH, "threads": 1, "samples_ms": tally.samples_ms}


def session_of(graph: ir.Model, folder: Path) -> onnxruntime.InferenceSession:
    """One thread; the graph goes through a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    path = folder / "graph.onnx"
    ir.save(graph, path)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def timed(calls: Mapping[str, Callable[[], Any]], batch: int) -> Tally:
    """Sample as `calipso bench` does."""

    def entrant(name: str, call: Callable[[], Any]) -> Entrant:
        return Entrant(
            name=name,
            call=lambda _: call(),
            check=lambda *_: [],
            device_ms=lambda: None,
            images=batch,
        )

    def turn(each: Entrant, tally: Tally) -> None:
        timed_call(each, 0, tally)
        last_s = tally.samples_ms[each.name][-1] / 1e3
        for _ in range(calls_per_turn(last_s, SECONDS) - 1):
            timed_call(each, 0, tally)

    return sample([entrant(*item) for item in calls.items()], turn, seconds=SECONDS, seed=0)


if __name__ == "__main__":
    sys.exit(main())
