"""Keeps a graph small: one of each tensor, and nothing that is not read.

The zero points of weights stay apart. onnxruntime fails to make weights uint8 where two share one, which it has to do
for weights of the full range on an x86 CPU without VNNI.
"""

import hashlib

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

# Which input of an operator is the zero point of its weights.
_ZERO_POINTS = {"DequantizeLinear": 2, "MatMulIntegerToFloat": 5}


def tidy(graph: ir.Model) -> None:
    """Keep one of each tensor, and drop what nothing reads."""
    _share_equal_initializers(graph.graph)
    passes.RemoveUnusedNodesPass()(graph)


def _share_equal_initializers(graph: ir.Graph) -> None:
    """Keep one of each tensor. onnx-ir's own pass by hash stops at tensors that are not contiguous."""
    kept: dict[tuple[object, ...], ir.Value] = {}
    for value in tuple(graph.initializers.values()):
        if value.const_value is None or value.name is None or value.is_graph_input() or _is_zero_point(value):
            continue
        array = np.asarray(value.const_value.numpy(), order="C")
        # As bytes: 16-bit types are none of a buffer's own.
        key = (value.dtype, array.shape, hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest())
        if key in kept:
            value.replace_all_uses_with(kept[key])
            del graph.initializers[value.name]
        else:
            kept[key] = value


def _is_zero_point(value: ir.Value) -> bool:
    return any(_ZERO_POINTS.get(use.node.op_type) == use.idx for use in value.uses())
