"""Trace: the model and its heads -> one portable ONNX file, the same bytes for the same inputs."""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import platform
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from calipso_export.classifier import ClassifierModule
from calipso_export.config import ExportConfig
from calipso_export.heads.calip import CalipHead
from calipso_export.heads.tip_adapter import TipAdapterHead
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.models import LoadedModel
from calipso_export.progress import Progress
from calipso_export.reference import HeadTensors
from calipso_export.step import Made, WorkFolder
from calipso_export.steps.tune import HeadRecord
from calipso_export.templates import Prompts
from calipso_runtime.bundle import (
    DIGEST_PLACEHOLDER,
    EXTERNAL_DATA_FILE,
    METADATA_DATA_DIGEST,
    METADATA_DIGEST,
    METADATA_MANIFEST,
    MODEL_FILE,
    Manifest,
    canonical,
    seal_model,
)

# Protobuf cannot serialise more than 2 GiB in one message; the graph itself needs some of it.
MAX_EMBEDDED_BYTES = 2**31 - 64 * 2**20
# A batch of 1 would be baked into the graph as a constant.
_EXAMPLE_BATCH = 2
_TOOLS = ("calipso", "torch", "open_clip_torch", "onnx", "onnxscript", "onnx-ir", "numpy", "pillow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """The written graph, and the part of the manifest that it carries."""

    path: Path
    manifest: Manifest


class Trace:
    """Export with torch.onnx's dynamo exporter, strip what is not needed to run, embed the manifest."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, WorkFolder, LoadedModel, Prompts, HeadTensors, HeadRecord)
    ensures: ClassVar[tuple[type, ...]] = (Graph,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, model = made[ExportConfig], made[LoadedModel]
        progress("tracing the graph", 0, 2)
        module = classifier_module(model, made[HeadTensors], config.outputs)
        graph = trace(module, model, config)
        progress("tracing the graph", 1, 2)
        manifest = _manifest(made, {**_describe(graph), **_describe_cache(module.tip_adapter)})
        graph.metadata_props[METADATA_MANIFEST] = canonical(manifest.core())
        path = made[WorkFolder].path / MODEL_FILE
        save(graph, path)
        seal_model(path)
        made.add(Graph(path=path, manifest=manifest))
        progress("tracing the graph", 2, 2)


def classifier_module(model: LoadedModel, heads: HeadTensors, outputs: tuple[str, ...]) -> ClassifierModule:
    """Put the tower and its heads together, with everything constant folded into their weights."""
    with_tokens = heads.calip is not None or "tokens" in outputs
    cache = None
    if heads.tip_adapter is not None and heads.keys is not None and heads.labels is not None:
        cache = TipAdapterHead(heads.keys, heads.labels, classes=len(heads.text), parameters=heads.tip_adapter)
    return ClassifierModule(
        model.tower(model.visual, with_tokens=with_tokens),
        ZeroShotHead(heads.text, scale=model.scale, bias=model.bias),
        calip=None if heads.calip is None else CalipHead(heads.calip, scale=model.scale),
        tip_adapter=cache,
        outputs=outputs,
    ).eval()


def trace(module: ClassifierModule, model: LoadedModel, config: ExportConfig) -> ir.Model:
    """One graph with a dynamic batch, without the traces of where it was made."""
    example = torch.zeros(_EXAMPLE_BATCH, 3, *model.preprocess.size)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # torch's exporter warns about its own internals; what it made is verified later.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=config.opset,
                input_names=["image"],
                output_names=list(config.outputs),
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    finally:
        logging.disable(before)
    if program is None:
        message = "torch.onnx.export returned no program"
        raise RuntimeError(message)
    graph = program.model
    _share_equal_initializers(graph.graph)
    passes.RemoveUnusedNodesPass()(graph)
    # Node metadata holds stack traces: paths of the machine, and other bytes on another one.
    passes.ClearMetadataAndDocStringPass()(graph)
    # That pass leaves the values out.
    values = [*graph.graph.inputs, *graph.graph.initializers.values()]
    for value in (*values, *(output for node in graph.graph for output in node.outputs)):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.graph.name = "calipso"
    graph.producer_name = "calipso"
    graph.producer_version = _version("calipso")
    return graph


def _share_equal_initializers(graph: ir.Graph) -> None:
    """Keep one of each tensor. onnx-ir's own pass by hash stops at tensors that are not contiguous."""
    kept: dict[tuple[object, ...], ir.Value] = {}
    for value in tuple(graph.initializers.values()):
        if value.const_value is None or value.name is None:
            continue
        array = np.ascontiguousarray(value.const_value.numpy())
        # The tensor's own shape: numpy makes [1] of a scalar when it makes it contiguous.
        key = (value.dtype, tuple(value.const_value.shape.numpy()), hashlib.sha256(array.data).digest())
        if key in kept:
            value.replace_all_uses_with(kept[key])
            del graph.initializers[value.name]
        else:
            kept[key] = value


def save(graph: ir.Model, path: Path) -> None:
    """Write one file, ready to be sealed; beyond 2 GB the weights go to one file beside it."""
    total = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    external = EXTERNAL_DATA_FILE if total > MAX_EMBEDDED_BYTES else None
    if external is not None:
        graph.metadata_props[METADATA_DATA_DIGEST] = DIGEST_PLACEHOLDER.decode()
    # Last, so that it is near the end of the file, where a reader looks for it first.
    graph.metadata_props[METADATA_DIGEST] = DIGEST_PLACEHOLDER.decode()
    ir.save(graph, path, external_data=external)


def _manifest(made: Made, graph: dict[str, Any]) -> Manifest:
    config, model, heads = made[ExportConfig], made[LoadedModel], made[HeadTensors]
    return Manifest(
        labels=config.classes,
        preprocess=model.preprocess,
        precision="fp32",
        model={
            "name": model.name,
            "config": Path(config.model).name if config.model.endswith(".json") else None,
            "family": model.tower.family,
            "embed_dim": heads.text.shape[1],
            "logit_scale": model.scale,
            "logit_bias": model.bias,
            "quick_gelu": model.quick_gelu,
            "weights": model.weights,
        },
        prompts=made[Prompts].as_json(),
        head={**made[HeadRecord].document, "seed": config.seed},
        graph=graph,
        tools={name: _version(name) for name in _TOOLS} | {"python": platform.python_version()},
    )


def _describe(graph: ir.Model) -> dict[str, Any]:
    def values(named: Any) -> dict[str, dict[str, Any]]:
        return {
            value.name: {
                "dtype": value.dtype.numpy().name,
                "shape": [size if isinstance(size, int) else str(size) for size in value.shape],
            }
            for value in named
        }

    operators = Counter(node.op_type for node in graph.graph)
    return {
        "opset": graph.opset_imports[""],
        "inputs": values(graph.graph.inputs),
        "outputs": values(graph.graph.outputs),
        "nodes": sum(operators.values()),
        "operators": json.loads(json.dumps(dict(sorted(operators.items())))),
    }


def _describe_cache(cache: TipAdapterHead | None) -> dict[str, Any]:
    """What it takes to unfold the keys again. torch's exporter renames the head's own `order`."""
    layout = [] if cache is None else [list(block) for block in cache.layout]
    order = None if cache is None or cache.order is None else cache.order.tolist()
    return {"cache_layout": layout, "cache_order": order}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
