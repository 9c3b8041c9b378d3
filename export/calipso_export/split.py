"""Splits a graph: the part that some of its outputs need, as a graph of its own."""

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import common as passes


def part(model: ir.Model, outputs: Collection[str] | None) -> ir.Model:
    """A copy that gives these outputs alone, and takes the inputs that they need; weights are shared.

    Args:
        model: left as it is.
        outputs: names; the graph itself where None.
    """
    if outputs is None:
        return model
    copy = model.clone()
    graph = copy.graph
    kept = [value for value in graph.outputs if value.name in outputs]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    passes.RemoveUnusedNodesPass()(copy)
    for value in tuple(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
            graph.initializers.pop(str(value.name), None)
    return copy
