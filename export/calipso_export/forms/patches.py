"""The patch embedding as rows of pixels: a convolution that does not overlap is a product per patch.

Every patch becomes one row [3*p*p]; the kernel [W,3,p,p] is then a 1x1 convolution over the rows,
with the same bytes as weights.
"""

import onnx_ir as ir

from calipso_export.forms.matching import (
    constant,
    is_permutation,
    nodes_of,
    only_consumer,
    replace_by,
    reshape,
    static_shape,
    transpose,
    viewed,
)

_KERNEL_RANK = 4


def patches_as_rows(graph: ir.Graph) -> int:
    """Replace `Transpose(Reshape(Conv(image)))` to [B,P,W], where the kernel is as large as its stride."""
    return sum(_replace(graph, node) for node in nodes_of(graph, "Conv"))


def _replace(graph: ir.Graph, conv: ir.Node) -> bool:
    image, kernel = conv.inputs[0], conv.inputs[1]
    flat = only_consumer(conv.outputs[0])
    turned = None if flat is None or flat.op_type != "Reshape" else only_consumer(flat.outputs[0])
    sizes = static_shape(image)
    weight = constant(kernel)
    if image is None or kernel is None or turned is None or sizes is None or weight is None:
        return False
    if not is_permutation(turned, 0, 2, 1) or not _does_not_overlap(conv, sizes):
        return False
    _, channels, height, width = sizes
    outputs, _, patch_height, patch_width = weight.shape
    if channels is None or height is None or width is None:
        return False
    rows, columns = height // patch_height, width // patch_width
    row = channels * patch_height * patch_width
    split = reshape(graph, image, -1, channels, rows, patch_height, columns, patch_width)
    grouped = transpose(split.outputs[0], 0, 2, 4, 1, 3, 5)
    lined = reshape(graph, grouped.outputs[0], 1, -1, 1, row)
    first = transpose(lined.outputs[0], 0, 3, 1, 2)
    rows_kernel = viewed(graph, kernel, f"{kernel.name}.rows", outputs, row, 1, 1)
    product = ir.node("Conv", [first.outputs[0], rows_kernel, *conv.inputs[2:]], {"kernel_shape": [1, 1]})
    last = transpose(product.outputs[0], 0, 2, 3, 1)
    merged = reshape(graph, last.outputs[0], -1, rows * columns, outputs)
    replace_by(graph, turned.outputs[0], [split, grouped, lined, first, product, last, merged])
    return True


def _does_not_overlap(conv: ir.Node, sizes: tuple[int | None, ...]) -> bool:
    attributes = conv.attributes
    kernel, strides = attributes["kernel_shape"].as_ints(), attributes["strides"].as_ints()
    plain = attributes["group"].as_int() == 1 and set(attributes["dilations"].as_ints()) == {1}
    covered = len(sizes) == _KERNEL_RANK and all(
        size is not None and size % step == 0 for size, step in zip(sizes[2:], strides, strict=True)
    )
    return plain and list(kernel) == list(strides) and not any(attributes["pads"].as_ints()) and covered
