"""Which element types TensorRT's tensors may have, and where."""

from collections.abc import Callable

import onnx
from onnx import TensorProto

from calipso_export.lint.network import Network, attribute
from calipso_export.lint.operators import FLOATS, INTEGERS, QUANTISED
from calipso_export.lint.types import type_name

# What TensorRT converts bytes to and from; it computes nothing with the bytes themselves.
_BESIDE_BYTES = (TensorProto.FLOAT, TensorProto.FLOAT16)
_Reads = Callable[[onnx.NodeProto], bool]
_Makes = Callable[[Network, onnx.NodeProto], bool]
# fp64 and uint8 have rules of their own.
_KNOWN = (*FLOATS, *INTEGERS, *QUANTISED, TensorProto.BOOL, TensorProto.UINT8, TensorProto.DOUBLE)


def known_type(network: Network, name: str) -> str | None:
    """TensorRT has the type at all."""
    kind = network.types[name]
    # A tensor of no type is one that a graph never makes, such as an output left out.
    return None if kind in (*_KNOWN, TensorProto.UNDEFINED) else f"it is of {type_name(kind)}"


def no_double(network: Network, name: str) -> str | None:
    """TensorRT computes double precision in fp32, without a word."""
    return "it is of fp64" if network.types[name] == TensorProto.DOUBLE else None


def bytes_at_the_edge(network: Network, name: str) -> str | None:
    """Bytes come in and go out, with a Cast right behind or before."""
    return _outside_edge(network, name, _casts_to_float, _casts_float)


def bytes_outside(network: Network, name: str) -> str | None:
    """Bytes come in and go out, and no tensor in between is of them: the rule of TensorRT for RTX."""
    return _outside_edge(network, name, _reads_bytes, _makes_bytes)


def _outside_edge(network: Network, name: str, reads: _Reads, makes: _Makes) -> str | None:
    if network.types[name] != TensorProto.UINT8:
        return None
    readers = network.readers.get(name, ())
    if name in network.inputs:
        allowed = all(reads(reader) for reader in readers)
    else:
        maker = network.makers.get(name)
        allowed = name in network.outputs and not readers and maker is not None and makes(network, maker)
    return None if allowed else "it is of uint8"


def _casts_to_float(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and attribute(node, "to", TensorProto.UNDEFINED) in _BESIDE_BYTES


def _casts_float(network: Network, node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and network.types.get(node.input[0]) in _BESIDE_BYTES


def _reads_bytes(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Cast", "Equal", "Identity", "Shape", "Size")


def _makes_bytes(_network: Network, node: onnx.NodeProto) -> bool:
    return node.op_type in ("Cast", "Identity")
