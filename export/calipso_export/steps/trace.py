"""Trace: the model and its heads -> one portable graph, the same for the same inputs."""

import ast
import dataclasses
import importlib.metadata
import logging
import warnings
from collections import Counter
from typing import ClassVar

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants

from calipso_export.choices import AS_INPUTS
from calipso_export.classifier import ClassifierModule, OpenModule, TeachableModule
from calipso_export.config import ExportConfig
from calipso_export.defaults import give_defaults
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.heads.calip import CalipHead
from calipso_export.heads.calip_fs import CalipFsHead
from calipso_export.heads.few_shot import FoldedHead
from calipso_export.heads.inputs import InputHead, exported
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.models import LoadedModel
from calipso_export.precision.islands import TEXT_TOWER, TOWER
from calipso_export.probes import Probes
from calipso_export.progress import Progress
from calipso_export.reference import HeadTensors
from calipso_export.step import Made
from calipso_export.tidy import tidy
from calipso_export.towers.text import TextTower
from calipso_runtime.head.classes import KEYS, OFFSET, TEXT, Head
from calipso_runtime.manifest import TEXT_EMBEDDING, TOKEN_IDS

# Where torch's exporter keeps the path of modules that a node comes from.
_SCOPES = "pkg.torch.onnx.name_scopes"
_ANY_SIZE = 2**62
# A batch of 1 would be baked into the graph as a constant.
_EXAMPLE_BATCH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
    """The graph as it was traced.

    Attributes:
        graph: the graph.
        few_shot: the few-shot head in it, whose layout a reader may need.
        rows: tokens of one picture, or of all views of a cloud, where the tower works on tokens.
        text_rows: tokens of one text, where the text tower is in the graph; then it has some token ids as defaults.
        head: where it is an input of the graph: what the graph begins with, and has as defaults in memory.
    """

    graph: ir.Model
    few_shot: FoldedHead | None
    rows: int | None
    text_rows: int | None = None
    head: Head | None = None


class Trace:
    """Export with torch.onnx's dynamo exporter, and strip what is not needed to run."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel, PhotoFeatures, HeadTensors)
    ensures: ClassVar[tuple[type, ...]] = (Traced,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, model = made[ExportConfig], made[LoadedModel]
        progress("tracing the graph", 0, 1)
        if config.takes_labels:
            made.add(traced_open(model, made[Probes], config))
        else:
            head = exported_head(made) if config.head_mode == AS_INPUTS else None
            made.add(traced(model, made[HeadTensors], config, head))
        progress("tracing the graph", 1, 1)


def traced(model: LoadedModel, heads: HeadTensors, config: ExportConfig, head: Head | None = None) -> Traced:
    """The graph of a model and its heads; with a head given, that is an input of it."""
    if head is None:
        module = classifier_module(model, heads, config.outputs)
        rows = None if module.tower.rows is None else module.tower.rows * model.front_end.images
        return Traced(graph=trace(module, model, config), few_shot=module.few_shot, rows=rows)
    tower = model.tower(model.visual, with_tokens="tokens" in config.outputs)
    teachable = TeachableModule(
        tower,
        InputHead(model.bias),
        width=head.width,
        temperature=heads.temperature,
        outputs=config.outputs,
    ).eval()
    graph = trace(teachable, model, config)
    give_defaults(graph.graph, head.arrays())
    return Traced(graph=graph, few_shot=None, rows=tower.rows, head=head)


def traced_open(model: LoadedModel, probes: Probes, config: ExportConfig) -> Traced:
    """The graph of both towers; while it lies in memory, the fixed texts are what it is asked about."""
    tower = model.tower(model.visual, with_tokens=False)
    text = TextTower(model.module)
    module = OpenModule(tower, text, scale=model.scale, bias=model.bias).eval()
    graph = trace(module, model, config, token_ids=probes.token_ids)
    give_defaults(graph.graph, {TOKEN_IDS: probes.token_ids.numpy()})
    return Traced(graph=graph, few_shot=None, rows=tower.rows, text_rows=probes.token_ids.shape[1])


def exported_head(made: Made) -> Head:
    """The head that a graph begins with which has it as an input; the photos stay in it where no cache is used."""
    config, model, heads, photos = made[ExportConfig], made[LoadedModel], made[HeadTensors], made[PhotoFeatures]
    return exported(
        config.classes,
        heads.text,
        photos.keys if config.cache else photos.keys[:0],
        photos.labels if config.cache else photos.labels[:0],
        weights=None if heads.few_shot is None else heads.few_shot.parameters_by_name(),
        scale=model.scale,
        bias=model.bias,
    )


def classifier_module(model: LoadedModel, heads: HeadTensors, outputs: tuple[str, ...]) -> ClassifierModule:
    """Put the tower and its heads together, with everything constant folded into their weights."""
    with_tokens = heads.calip is not None or "tokens" in outputs
    few_shot = heads.few_shot
    projection, views = model.front_end.modules()
    return ClassifierModule(
        model.tower(model.visual, with_tokens=with_tokens),
        ZeroShotHead(heads.text, scale=model.scale, bias=model.bias),
        calip=_calip(heads, model.scale),
        few_shot=None if few_shot is None else (few_shot.name, few_shot.fold(heads.text, model.scale)),
        projection=projection,
        views=views,
        temperature=heads.temperature,
        outputs=outputs,
    ).eval()


def _calip(heads: HeadTensors, scale: float) -> CalipHead | CalipFsHead | None:
    if heads.calip is None:
        return None
    if heads.layers is None:
        return CalipHead(heads.calip, scale=scale, centred=heads.centred)
    return CalipFsHead(heads.calip, heads.layers, scale=scale, centred=heads.centred)


def trace(
    module: ClassifierModule | TeachableModule | OpenModule,
    model: LoadedModel,
    config: ExportConfig,
    *,
    token_ids: torch.Tensor | None = None,
) -> ir.Model:
    """One graph with a dynamic batch, without the traces of where it was made.

    Args:
        module: what to trace.
        model: whose front end gives its input.
        config: names its outputs, and the opset.
        token_ids: int64 [N,L], an example where the module takes some.
    """
    name = model.front_end.name
    examples = {name: torch.zeros(_EXAMPLE_BATCH, *model.front_end.shape)}
    dynamic: list[dict[int, torch.export.Dim]] = [{0: torch.export.Dim("batch")}]
    if isinstance(module, TeachableModule):
        shapes, sizes = _head_inputs(module.width)
        examples |= {name: torch.zeros(shape) for name, shape in shapes.items()}
        dynamic += sizes
    outputs = list(config.outputs)
    if token_ids is not None:
        examples |= {TOKEN_IDS: token_ids}
        dynamic.append({0: torch.export.Dim("texts")})
        outputs.append(TEXT_EMBEDDING)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # torch's exporter warns about its own internals; what it made is verified later.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(examples.values()),
                dynamo=True,
                opset_version=config.opset,
                input_names=list(examples),
                output_names=outputs,
                dynamic_shapes=tuple(dynamic),
                verbose=False,
            )
    finally:
        logging.disable(before)
    if program is None:
        message = "torch.onnx.export returned no program"
        raise RuntimeError(message)
    graph = program.model
    # torch's exporter folds only what is small: slices of a weight have to be weights too, to be quantised.
    # What the exporter calls a value inside may be what an output is called.
    passes.NameFixPass()(graph)
    fold_constants(graph, onnx_shape_inference=False, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    tidy(graph)
    name_by_module(graph.graph)
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


def _head_inputs(width: int) -> tuple[dict[str, tuple[int, ...]], list[dict[int, torch.export.Dim]]]:
    """Of the head's inputs: shapes of examples, and which of their sizes are dynamic."""
    classes, shots = torch.export.Dim("classes"), torch.export.Dim("shots")
    count, most = _EXAMPLE_BATCH + 1, _EXAMPLE_BATCH + 2
    return (
        {TEXT: (count, width), KEYS: (count, most, width), OFFSET: (count, most)},
        [{0: classes}, {0: classes, 1: shots}, {0: classes, 1: shots}],
    )


def name_by_module(graph: ir.Graph) -> None:
    """Name every node after the module that it comes from: what reports of layers, here and in engines, show.

    What a module computes outside its own modules takes the name of their parent, or of its parameters' owner.
    """
    layer, counts = "", Counter[str]()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        # The last is the operation itself; the first stands for the whole model, or for the exporter's own work.
        own = scopes[-2] if len(scopes) > 1 and not scopes[0] else layer
        if own in (TOWER, TEXT_TOWER):
            own = _owner(node, layer) or (layer if layer.startswith(TOWER) else own)
        elif own.startswith(TOWER) and own in scopes:
            layer = own.rpartition(".")[0]
        if not own.startswith(TOWER):
            layer = own
        name = f"{own or 'head'}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def _owner(node: ir.Node, layer: str) -> str | None:
    """The module below a layer that a node's parameter belongs to."""
    names = (str(value.name) for value in node.inputs if value is not None and value.is_initializer())
    return next((name.rpartition(".")[0] for name in names if name.startswith(f"{layer}.")), None)
