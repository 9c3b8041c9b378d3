"""Holds a lowered graph against its fp32 original layer by layer, in one run of one joined graph.

Beside the original runs the lowered graph, and of each of its nodes a copy that is fed by the original.
Only three numbers per node leave the engine, so memory does not grow with the number of layers:
the error that has added up, the error that the node alone makes, and the largest magnitude.
"""

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.precision.emulate import emulate
from calipso_export.precision.islands import layer_of
from calipso_export.precision.run import open_graph

_ORIGINAL, _ALONE = "original/", "alone/"
_TINY = np.float32(1e-20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerError:
    """One node of the original, and what the lowered graph makes of it, worst of the pictures asked.

    Attributes:
        node: its name.
        operator: its type.
        kind: type of its output in the lowered graph, "float16".
        error: |lowered - original| / |original| of its output, L2 over the batch; infinite where not finite.
        own_error: the same where its inputs are the original's.
        peak: largest magnitude of its output in the original.
    """

    node: str
    operator: str
    kind: str
    error: float
    own_error: float
    peak: float

    @property
    def layer(self) -> str:
        """The module that it belongs to."""
        return layer_of(self.node)


def layer_errors(original: ir.Model, lowered: ir.Model, batches: Sequence[npt.NDArray[np.float32]]) -> list[LayerError]:
    """Compare every node of float output.

    Args:
        original: the fp32 graph; left as it is.
        lowered: made from it: nodes and values that both have keep their names; left as it is.
        batches: preprocessed pictures, float32 [B,3,H,W] each.

    Returns:
        In the graph's order.
    """
    kinds = {value.name: value.dtype for node in lowered.graph for value in node.outputs}
    joined, compared = _join(original, lowered)
    peaks: dict[str, npt.NDArray[np.float64]] = {}
    with tempfile.TemporaryDirectory() as folder, np.errstate(invalid="ignore"):
        session = open_graph(joined, Path(folder))
        entry = session.get_inputs()[0]
        for batch in batches:
            given = batch.astype(np.float16) if entry.type == "tensor(float16)" else batch
            for name, value in zip(
                (output.name for output in session.get_outputs()), session.run(None, {entry.name: given}), strict=True
            ):
                found = np.nan_to_num(np.asarray(value, np.float64), nan=math.inf, posinf=math.inf)
                peaks[name] = np.maximum(peaks.get(name, found), found)
    return [
        LayerError(
            node=str(node.name),
            operator=node.op_type,
            kind="" if (kind := kinds.get(name)) is None else kind.name.lower(),
            error=float(peaks[f"{name}/error"]),
            own_error=float(peaks[f"{name}/own"]),
            peak=float(peaks[f"{name}/peak"]),
        )
        for name, node in compared.items()
    ]


def _join(original: ir.Model, lowered: ir.Model) -> tuple[ir.Model, Mapping[str, ir.Node]]:
    """One graph with the three numbers of each node as outputs; the nodes by the name of their output."""
    joined = emulate(lowered.clone())
    joined.metadata_props.clear()
    graph = joined.graph
    low = {str(value.name): value for node in graph for value in node.outputs}
    own_nodes = {value.name: node for node in graph for value in node.outputs}
    copies = _copy_in(graph, original.graph)
    compared = {
        str(node.outputs[0].name): node
        for node in original.graph
        if node.outputs[0].dtype == ir.DataType.FLOAT and str(node.outputs[0].name) in low
    }
    alone = _Alone(graph, copies, own_nodes)
    graph.outputs.clear()
    for name in compared:
        reference, value = copies[name], low[name]
        _report(graph, name, reference, value, alone.of(name))
    return joined, compared


def _copy_in(graph: ir.Graph, original: ir.Graph) -> dict[str, ir.Value]:
    """Copy the original's nodes in under other names; its values by their own name."""
    entry = graph.inputs[0]
    values: dict[str, ir.Value] = {}
    if entry.dtype != ir.DataType.FLOAT:
        # The original is asked for the same pictures.
        entry = _append(graph, "Cast", [entry], f"{_ORIGINAL}{entry.name}", {"to": ir.DataType.FLOAT.value})
    values[str(original.inputs[0].name)] = entry
    for name, value in original.initializers.items():
        new = ir.Value(name=_ORIGINAL + name, shape=value.shape, type=value.type, const_value=value.const_value)
        graph.register_initializer(new)
        values[name] = new
    for node in original:
        inputs = [None if value is None else values[str(value.name)] for value in node.inputs]
        copy = _copied(node, inputs, _ORIGINAL)
        graph.append(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            values[str(old.name)] = new
    return values


class _Alone:
    """Copies of the lowered graph's nodes that read the original's values."""

    def __init__(self, graph: ir.Graph, originals: Mapping[str, ir.Value], nodes: Mapping[str | None, ir.Node]) -> None:
        self._graph, self._originals, self._nodes = graph, originals, nodes
        self._made: dict[str, ir.Value] = {}

    def of(self, name: str) -> ir.Value:
        """The value of this name, made by the lowered graph's node out of the original's values."""
        made = self._remade(name)
        self._made = {}
        return made

    def _remade(self, name: str) -> ir.Value:
        if name in self._made:
            return self._made[name]
        node = self._nodes[name]
        copy = _copied(node, [None if value is None else self._read(value) for value in node.inputs], _ALONE)
        # What stands between two nodes is copied for each of its readers.
        copy.name = f"{copy.name}.{len(self._graph)}"
        for output in copy.outputs:
            output.name = f"{output.name}.{len(self._graph)}"
        self._graph.append(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            self._made[str(old.name)] = new
        return self._made[name]

    def _read(self, value: ir.Value) -> ir.Value:
        name = str(value.name)
        if name in self._originals and name in self._nodes:
            return self._originals[name]
        return self._remade(name) if name in self._nodes else value


def _copied(node: ir.Node, inputs: Sequence[ir.Value | None], prefix: str) -> ir.Node:
    copy = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=f"{prefix}{node.name}",
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name, new.shape, new.type = f"{prefix}{old.name}", old.shape, old.type
    return copy


def _report(graph: ir.Graph, name: str, reference: ir.Value, value: ir.Value, alone: ir.Value) -> None:
    tiny = _constant(graph, "tiny", _TINY)
    size = _append(graph, "Add", [_norm(graph, reference, f"{name}/size"), tiny], f"{name}/size_")
    for what, made in (("error", value), ("own", alone)):
        to = {"to": ir.DataType.FLOAT.value}
        other = made if made.dtype == ir.DataType.FLOAT else _append(graph, "Cast", [made], f"{name}/{what}_float", to)
        difference = _append(graph, "Sub", [other, reference], f"{name}/{what}_difference")
        ratio = _append(graph, "Div", [_norm(graph, difference, f"{name}/{what}_norm"), size], f"{name}/{what}")
        graph.outputs.append(ratio)
    magnitude = _append(graph, "Abs", [reference], f"{name}/abs")
    graph.outputs.append(_append(graph, "ReduceMax", [magnitude], f"{name}/peak", {"keepdims": 0}))


def _norm(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    return _append(graph, "ReduceL2", [value], name, {"keepdims": 0})


def _append(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, int] | None = None,
) -> ir.Value:
    node = ir.node(operator, inputs, dict(attributes or {}), name=f"{name}/node")
    node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT
    graph.append(node)
    return node.outputs[0]


def _constant(graph: ir.Graph, name: str, number: np.float32) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(number), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
        )
    return graph.initializers[name]
