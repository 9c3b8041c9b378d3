"""Depthwise convolutions that widen, as several that do not: ONNX Runtime's blocked kernel knows only the latter.

With m kernels to a channel (MobileCLIP's downsampling: 7x7, 64 channels to 128) it falls back to a loop over the
channels. The j-th kernels of all channels are a plain depthwise convolution; their maps then take turns again.
"""

import onnx_ir as ir

from calipso_export.forms.matching import add_constant, constant, nodes_of, replace_by, reshape, static_shape

_RANK = 4
# Channels come in blocks of up to 16; others are not blocked either.
_BLOCK = 16


def depthwise_per_kernel(graph: ir.Graph) -> int:
    """Replace a Conv of as many groups as channels, but m times as many kernels, by m of them and a Concat."""
    return sum(_replace(graph, node) for node in nodes_of(graph, "Conv"))


def _replace(graph: ir.Graph, conv: ir.Node) -> bool:
    kernel, shape = constant(conv.inputs[1]), static_shape(conv.outputs[0])
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None  # noqa: PLR2004
    if kernel is None or shape is None or len(shape) != _RANK or (bias is None and len(conv.inputs) > 2):  # noqa: PLR2004
        return False
    channels = conv.attributes["group"].as_int() if "group" in conv.attributes else 1
    outputs, own, *_ = kernel.shape
    height, width = shape[2:]
    if own != 1 or channels % _BLOCK or outputs in {0, channels} or height is None or width is None:
        return False
    times, name = outputs // channels, conv.outputs[0].name
    chain: list[ir.Node] = []
    parts = []
    for index in range(times):
        inputs = [conv.inputs[0], add_constant(graph, f"{name}.kernel_{index}", kernel[index::times])]
        if bias is not None:
            inputs.append(add_constant(graph, f"{name}.bias_{index}", bias[index::times]))
        part = ir.node("Conv", inputs, dict(conv.attributes))
        apart = reshape(graph, part.outputs[0], -1, channels, 1, height * width)
        chain += [part, apart]
        parts.append(apart.outputs[0])
    joined = ir.node("Concat", parts, {"axis": 2})
    replace_by(graph, conv.outputs[0], [*chain, joined, reshape(graph, joined.outputs[0], -1, outputs, height, width)])
    return True
