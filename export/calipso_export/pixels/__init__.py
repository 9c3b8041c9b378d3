"""Puts the preparation of pictures before a graph: raw pixels in, what the graph took until then out.

It is attached to the finished graph, whatever its precision: it is in integers and fp32 alone, and everything that
calibrates, lowers and repairs works on the graph without it.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from calipso_export.pixels import by_matmul, by_op
from calipso_export.pixels.nodes import Nodes
from calipso_runtime.manifest import IMAGE, PIXELS, Preprocess
from calipso_runtime.pixel_input import MATMUL, PixelInput


def attach(model: ir.Model, given: PixelInput, config: Preprocess, *, casts_first: bool = True) -> ir.Model:
    """A graph of pixels out of one of prepared images.

    Args:
        model: whose first input is `image` [B,3,H,W]; left as it is.
        given: what the new graph takes.
        config: how pictures are prepared.
        casts_first: for TensorRT, which does nothing with uint8 but to cast it; others move a quarter of the bytes
            where they cast last.
    """
    model = model.clone()
    graph = model.graph
    image = graph.inputs[0]
    if image.name != IMAGE or image.shape is None:
        message = f"the graph begins with {image.name}, expected is {IMAGE}"
        raise ValueError(message)
    height, width, channels = given.shape
    shape = ir.Shape([image.shape[0], height or "height", width or "width", channels])
    pixels = ir.Value(name=PIXELS, shape=shape, type=ir.TensorType(ir.DataType.UINT8))
    nodes = Nodes(graph)
    if given.resize == MATMUL:
        levels = by_matmul.levels(nodes, pixels, given, config, casts_first=casts_first)
    else:
        levels = by_op.levels(nodes, pixels, given, config)
    prepared = _normalised(nodes, levels, config)
    if image.dtype != ir.DataType.FLOAT and image.dtype is not None:
        prepared = nodes.op("Cast", prepared, to=image.dtype.value)
    graph.inputs[0] = pixels
    image.name, prepared.name = f"{IMAGE}.before", IMAGE
    prepared.shape, prepared.type = image.shape, image.type
    graph.insert_before(next(iter(graph)), nodes.made)
    ir.convenience.replace_all_uses_with(image, prepared)
    return model


def detach(model: ir.Model) -> ir.Model:
    """The graph of prepared images that pixels were put before, in place; any other graph as it is."""
    graph = model.graph
    if graph.inputs[0].name != PIXELS:
        return model
    before = [node for node in graph if (node.name or "").startswith(f"{PIXELS}/")]
    prepared = before[-1].outputs[0]
    image = ir.Value(name=IMAGE, shape=prepared.shape, type=prepared.type)
    prepared.name = f"{IMAGE}.prepared"
    ir.convenience.replace_all_uses_with(prepared, image)
    graph.inputs[0] = image
    for node in before:
        _empty_branches(node)
    passes.RemoveUnusedNodesPass()(model)
    return model


def _empty_branches(node: ir.Node) -> None:
    """The pass would take what the branches of a removed node read for still in use."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            branch = attribute.as_graph()
            branch.outputs.clear()
            for each in reversed(tuple(branch)):
                _empty_branches(each)
                branch.remove(each, safe=True)


def _normalised(nodes: Nodes, levels: ir.Value, config: Preprocess) -> ir.Value:
    """Float32 levels -> bit for bit what ToTensor and Normalize give of them."""

    def per_channel(values: tuple[float, float, float]) -> ir.Value:
        return nodes.constant(np.array(values, np.float32).reshape(3, 1, 1))

    shares = nodes.op("Div", levels, nodes.constant(np.array(255, np.float32)))
    return nodes.op("Div", nodes.op("Sub", shares, per_channel(config.mean)), per_channel(config.std))
