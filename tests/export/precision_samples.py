"""Small graphs named like a tower's, lowered by hand, and traces that are made once for all exports."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from export_samples import crafted_graph
from onnx import helper

from calipso_export.classifier import ClassifierModule
from calipso_export.config import ExportConfig
from calipso_export.models import LoadedModel
from calipso_export.precision import Precision
from calipso_export.precision.lower import Lowered, lower
from calipso_export.steps import trace as trace_step
from calipso_export.steps.lower import Lowering

Arrays = Mapping[str, np.ndarray]
ExportLow = Callable[..., Path]
# A tiny model with random weights is worse conditioned than a trained one: what it answers is not the point there.
LOOSE = {"max_relative_logit_error": 1.0, "min_embedding_cosine": 0.9, "min_top1_agreement": 0.0, "min_same_top1": 0.0}
OPSET = 20


def node(
    operator: str, inputs: Sequence[str], output: str, *, layer: str = "tower", **attributes: object
) -> onnx.NodeProto:
    """A node that is named after its layer, its operator and its output."""
    return helper.make_node(operator, inputs, [output], name=f"{layer}.{output}/{operator}", **attributes)


def graph_of(
    nodes: Sequence[onnx.NodeProto], arrays: Arrays, *, shape: Sequence[int | str], result: str = "y", opset: int = 18
) -> ir.Model:
    """See `crafted_graph`; its types have to agree."""
    model = crafted_graph(nodes, arrays, shape=shape, result=result, opset=opset)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def chain(*weights: np.ndarray, opset: int = 18) -> ir.Model:
    """x through one matrix after another: w0, w1, ... make h0, h1, ..., the last y."""
    names = [*(f"h{place}" for place in range(len(weights) - 1)), "y"]
    read = ["x", *names]
    nodes = [node("MatMul", [read[place], f"w{place}"], name) for place, name in enumerate(names)]
    arrays = {f"w{place}": weight.astype(np.float32) for place, weight in enumerate(weights)}
    return graph_of(nodes, arrays, shape=["batch", len(weights[0])], opset=opset)


def node_named(model: ir.Model, name: str) -> ir.Node:
    (found,) = [each for each in model.graph if each.name == name]
    return found


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime answers, as it is used."""
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def lowering(model: ir.Model, precision: Precision, *, pinned: Mapping[str, str] | None = None) -> Lowering:
    """A graph in a precision, with all ranges 4, and what is claimed of it."""
    return Lowering(
        graphs=lowered(model, precision, pinned=pinned),
        precision=precision,
        pinned=pinned or {},
        io_dtype="fp32",
        calibration={},
    )


def lowered(model: ir.Model, precision: Precision, *, pinned: Mapping[str, str] | None = None) -> Lowered:
    values = [value.name for each in model.graph for value in each.inputs if value is not None]
    return lower(model, precision, ranges=dict.fromkeys(map(str, values), 4.0), pinned=pinned or {})


class Traces:
    """torch's exporter takes seconds and gives the same for the same model, head, opset and outputs: asked once."""

    def __init__(self) -> None:
        self._trace = trace_step.trace
        self.kept: dict[tuple[object, ...], ir.Model] = {}

    def __call__(self, module: ClassifierModule, model: LoadedModel, config: ExportConfig) -> ir.Model:
        centred = module.calip is not None and module.calip.centred
        heads = (module.calip is not None, centred, module.few_shot is not None)
        # A manifest sorts the outputs: what debugs a bundle asks for them in another order.
        key = (model.weights["sha256"], config.opset, frozenset(config.outputs), *heads)
        if key not in self.kept:
            self.kept[key] = self._trace(module, model, config)
        return self.kept[key].clone()
