"""Attention's scale, folded from the queries into the weights that make them: one Mul per layer less.

`(x W + b) c = x (W c) + (b c)`: exact up to rounding, and to the last bit where c is a power of two,
as it is for heads of 64 channels.
"""

import numpy as np
import onnx_ir as ir

from calipso_export.forms.matching import add_constant, constant, made_by, nodes_of, only_consumer, scalar_operand


def fold_attention_scale(graph: ir.Graph) -> int:
    """Fold `Mul(linear(x), scalar)`, also where the linear layer makes queries, keys and values at once."""
    changed = 0
    for node in nodes_of(graph, "Mul"):
        if (operand := scalar_operand(node)) is not None:
            changed += _fold(graph, node, *operand)
    return changed


def _fold(graph: ir.Graph, multiply: ir.Node, value: ir.Value, factor: float) -> int:
    if only_consumer(value) is not multiply:
        return 0
    split = made_by(value, "Split")
    linear = value if split is None else split.inputs[0]
    add = made_by(linear, "Add")
    product = None if add is None else made_by(add.inputs[0], "MatMul")
    if add is None or product is None or linear is None or only_consumer(product.outputs[0]) is not add:
        return 0
    if only_consumer(linear) is not (split or multiply):
        return 0
    weight, bias = constant(product.inputs[1]), constant(add.inputs[1])
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[1:]:  # noqa: PLR2004
        return 0
    columns = _columns(split, value, weight.shape[1])
    if columns is None:
        return 0
    scale = np.ones(weight.shape[1], np.float32)
    scale[columns] = factor
    product.replace_input_with(1, add_constant(graph, f"{product.outputs[0].name}.weight", weight * scale))
    add.replace_input_with(1, add_constant(graph, f"{product.outputs[0].name}.bias", bias * scale))
    ir.convenience.replace_all_uses_with(multiply.outputs[0], value, replace_graph_outputs=False)
    graph.remove(multiply)
    return 1


def _columns(split: ir.Node | None, value: ir.Value, width: int) -> slice | None:
    """Which columns of the weights make this output of an even Split of the last axis; all without a Split."""
    if split is None:
        return slice(None)
    axis, rank = split.attributes["axis"].as_int(), None if value.shape is None else len(value.shape)
    if len(split.inputs) > 1 or axis not in (-1, None if rank is None else rank - 1):
        return None
    part, remainder = divmod(width, len(split.outputs))
    first = part * split.outputs.index(value)
    return slice(first, first + part) if remainder == 0 else None
