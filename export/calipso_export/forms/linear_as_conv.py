"""Linear layers over tokens as 1x1 convolutions: ONNX Runtime's blocked convolution beats its MatMul there.

With few rows (50 tokens of one picture) a product is bound by how fast its weights arrive. ONNX
Runtime's MatMul packs them in panels and re-reads them for every dozen of rows; its convolution
keeps them in blocks of channels (NCHWc), reads them once, and adds the bias on the way. With many
rows both are equal. A convolution over [1,K,rows,1] is the same product. docs/performance.md has
what it gains.
"""

import onnx_ir as ir

from calipso_export.forms.matching import (
    TO_CHANNELS,
    TO_ROWS,
    constant,
    is_permutation,
    made_by,
    nodes_of,
    only_consumer,
    remove_unread,
    replace_by,
    reshape,
    static_shape,
    transpose,
    viewed,
)

_RANK = 3
# Channels come in blocks of up to 16; narrower layers gain nothing.
_MIN_CHANNELS = 16
_ELEMENTWISE = ("Gelu", "QuickGelu")


def linear_as_conv(graph: ir.Graph) -> int:
    """Replace `Add(MatMul(x, W), b)` and `MatMul(x, W)` where x is [B,L,K] and W a constant [K,N]."""
    changed = sum(_replace(graph, node) for node in nodes_of(graph, "MatMul"))
    _stay_in_channels(graph)
    return changed


def _replace(graph: ir.Graph, product: ir.Node) -> bool:
    x, weight = product.inputs[0], product.inputs[1]
    turned = made_by(weight, "Transpose")
    if turned is not None and is_permutation(turned, 1, 0):
        weight = turned.inputs[0]
    shape, array = static_shape(x), constant(weight)
    if x is None or weight is None or shape is None or array is None or array.ndim != 2:  # noqa: PLR2004
        return False
    inner, outer = array.shape if turned is None else array.shape[::-1]
    if len(shape) != _RANK or shape[1] is None or min(inner, outer) < _MIN_CHANNELS:
        return False
    replaced, bias = _with_bias(product, outer)
    lined = reshape(graph, x, 1, -1, 1, inner)
    first = transpose(lined.outputs[0], *TO_CHANNELS)
    kernel, turning = _kernel(graph, weight, inner, outer, is_turned=turned is not None)
    conv = ir.node("Conv", [first.outputs[0], kernel, *([] if bias is None else [bias])], {"kernel_shape": [1, 1]})
    last = transpose(conv.outputs[0], *TO_ROWS)
    merged = reshape(graph, last.outputs[0], -1, shape[1], outer)
    replace_by(graph, replaced, [lined, first, *turning, conv, last, merged])
    return True


def _kernel(
    graph: ir.Graph, weight: ir.Value, inner: int, outer: int, *, is_turned: bool
) -> tuple[ir.Value, list[ir.Node]]:
    """The weights as a kernel [N,K,1,1], and the nodes that make it of their bytes; the engine folds those."""
    if is_turned:
        return viewed(graph, weight, f"{weight.name}.turned", outer, inner, 1, 1), []
    turning = transpose(viewed(graph, weight, f"{weight.name}.kernel", inner, outer, 1, 1), 1, 0, 2, 3)
    return turning.outputs[0], [turning]


def _with_bias(product: ir.Node, outer: int) -> tuple[ir.Value, ir.Value | None]:
    """What the layer makes, with its bias where only an Add of one follows."""
    made = product.outputs[0]
    add = only_consumer(made)
    if add is None or add.op_type != "Add":
        return made, None
    bias = add.inputs[1] if add.inputs[0] is made else add.inputs[0]
    array = constant(bias)
    return (add.outputs[0], bias) if array is not None and array.shape == (outer,) else (made, None)


def _stay_in_channels(graph: ir.Graph) -> None:
    """Between two convolutions an elementwise operator needs no rows: drop both Transposes around it."""
    for node in nodes_of(graph, *_ELEMENTWISE):
        merged = made_by(node.inputs[0], "Reshape")
        last = None if merged is None else made_by(merged.inputs[0], "Transpose")
        lined = only_consumer(node.outputs[0])
        first = None if lined is None else only_consumer(lined.outputs[0])
        if merged is None or last is None or first is None or not is_permutation(last, *TO_ROWS):
            continue
        if is_permutation(first, *TO_CHANNELS):
            node.replace_input_with(0, last.inputs[0])
            node.outputs[0].shape = None
            ir.convenience.replace_all_uses_with(first.outputs[0], node.outputs[0])
            remove_unread(graph, first)
            remove_unread(graph, merged)
