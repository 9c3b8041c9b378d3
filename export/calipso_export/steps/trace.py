"""Trace: the model and its heads -> one portable graph, the same for the same inputs."""

import dataclasses
import hashlib
import importlib.metadata
import logging
import warnings
from typing import ClassVar

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
from calipso_export.step import Made

# A batch of 1 would be baked into the graph as a constant.
_EXAMPLE_BATCH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
    """The graph as it was traced.

    Attributes:
        graph: the graph.
        cache: the one in it, whose layout a reader needs.
        rows: tokens of one picture, where the tower works on tokens.
    """

    graph: ir.Model
    cache: TipAdapterHead | None
    rows: int | None


class Trace:
    """Export with torch.onnx's dynamo exporter, and strip what is not needed to run."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel, HeadTensors)
    ensures: ClassVar[tuple[type, ...]] = (Traced,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, model = made[ExportConfig], made[LoadedModel]
        progress("tracing the graph", 0, 1)
        module = classifier_module(model, made[HeadTensors], config.outputs)
        made.add(Traced(graph=trace(module, model, config), cache=module.tip_adapter, rows=module.tower.rows))
        progress("tracing the graph", 1, 1)


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
    tidy(graph)
    # Node metadata holds stack traces: paths of the machine, and other bytes on another one.
    passes.ClearMetadataAndDocStringPass()(graph)
    # That pass leaves the values out.
    values = [*graph.graph.inputs, *graph.graph.initializers.values()]
    for value in (*values, *(output for node in graph.graph for output in node.outputs)):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.graph.name = "calipso"
    graph.producer_name = "calipso"
    graph.producer_version = importlib.metadata.version("calipso")
    return graph


def tidy(graph: ir.Model) -> None:
    """Keep one of each tensor, and drop what nothing reads."""
    _share_equal_initializers(graph.graph)
    passes.RemoveUnusedNodesPass()(graph)


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
