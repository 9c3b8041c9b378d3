"""Which element types TensorRT's tensors may have, and where."""

from collections.abc import Callable, Mapping

import onnx
from onnx import TensorProto

from calipso_export.lint.network import Network, attribute

# Answers how a sentence about the tensor goes on that says what is wrong with it.
Rule = Callable[[Network, str], str | None]

# What TensorRT converts bytes to and from; it computes nothing with the bytes themselves.
_BESIDE_BYTES = (TensorProto.FLOAT, TensorProto.FLOAT16)


def no_double(_network: Network, _name: str) -> str:
    """TensorRT computes double precision in fp32, without a word."""
    return "of fp64: expected fp32, fp16 or bf16"


def bytes_at_the_edge(network: Network, name: str) -> str | None:
    """Bytes come in and go out, with a Cast right behind or before."""
    readers = network.readers.get(name, ())
    if name in network.inputs:
        allowed = all(_casts_to_float(reader) for reader in readers)
    else:
        maker = network.makers.get(name)
        allowed = name in network.outputs and not readers and maker is not None and _casts_float(network, maker)
    return None if allowed else "of uint8: expected only inputs and outputs of the graph, beside a Cast to fp32 or fp16"


def _casts_to_float(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and attribute(node, "to", TensorProto.UNDEFINED) in _BESIDE_BYTES


def _casts_float(network: Network, node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and network.types.get(node.input[0]) in _BESIDE_BYTES


RULES: Mapping[int, Rule] = {
    TensorProto.DOUBLE: no_double,
    TensorProto.UINT8: bytes_at_the_edge,
}
