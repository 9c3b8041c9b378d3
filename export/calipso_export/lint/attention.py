"""Which attentions TensorRT may not run as one kernel, and why: found at the Softmax of each."""

import dataclasses
from collections.abc import Iterator

import onnx
from onnx import TensorProto

from calipso_export.lint.network import Network
from calipso_export.lint.operators import LEAST_HEAD, MOST_HEAD
from calipso_export.lint.rule import NodeCheck
from calipso_export.lint.types import type_name

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# What may lie between the products of an attention, whether or not a kernel fuses over it.
_BETWEEN = ("Add", "Cast", "DequantizeLinear", "Div", "Dropout", "Identity", "Mul", "QuantizeLinear", "Sub", "Where")
# Masks are added to the scores; probabilities may be quantised.
_BEFORE, _BEHIND = ("Add", "Identity", "Where"), ("DequantizeLinear", "Dropout", "Identity", "QuantizeLinear")
# What may lie between a Cast of queries, keys or values and the product.
_SHAPED = ("Identity", "Mul", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """MatMul, Softmax, MatMul.

    Attributes:
        scores: multiplies queries by keys.
        before: the nodes from there to the Softmax, its own left out.
        behind: the nodes from the Softmax to `weighted`.
        weighted: multiplies probabilities by values.
    """

    scores: onnx.NodeProto
    before: tuple[onnx.NodeProto, ...]
    behind: tuple[onnx.NodeProto, ...]
    weighted: onnx.NodeProto


def attention_of(network: Network, softmax: onnx.NodeProto) -> Attention | None:
    """The attention that a Softmax belongs to, None for any other Softmax."""
    before = _back_to_product(network, softmax.input[0])
    behind: list[onnx.NodeProto] = []
    made = softmax.output[0]
    while len(readers := network.readers.get(made, ())) == 1:
        if readers[0].op_type == "MatMul":
            if before is None or readers[0].input[0] != made:
                return None
            return Attention(scores=before[0], before=before[1:], behind=tuple(behind), weighted=readers[0])
        if readers[0].op_type not in _BETWEEN:
            return None
        behind.append(readers[0])
        made = readers[0].output[0]
    return None


def _back_to_product(network: Network, name: str) -> tuple[onnx.NodeProto, ...] | None:
    """The product that a tensor comes from, and the nodes from there on."""
    maker = network.makers.get(name)
    if maker is None:
        return None
    if maker.op_type == "MatMul":
        return (maker,)
    if maker.op_type not in _BETWEEN:
        return None
    for source in maker.input:
        found = _back_to_product(network, source)
        if found is not None:
            return (*found, maker)
    return None


def fusable(*, aligned: int, upcast: bool) -> NodeCheck:
    """An attention has the form that TensorRT has fused kernels for.

    Args:
        aligned: what the size of a head has to be a multiple of.
        upcast: whether queries, keys and values may be cast to fp32 right before the products.
    """

    def check(network: Network, node: onnx.NodeProto) -> str | None:
        found = attention_of(network, node)
        if found is None:
            return None
        reasons = (*_types(network, found, upcast=upcast), *_between(found), *_head(network, found, aligned))
        return "; ".join(reasons) or None

    return check


def _types(network: Network, found: Attention, *, upcast: bool) -> Iterator[str]:
    for product, which in ((found.scores, "first"), (found.weighted, "second")):
        kind = network.types[product.input[0]]
        factors = product.input if product is found.scores else product.input[1:]
        if kind not in _HALF and not (upcast and all(_from_half(network, name) for name in factors)):
            yield f"its {which} product is of {type_name(kind)}"


def _from_half(network: Network, name: str) -> bool:
    maker = network.makers.get(name)
    while maker is not None and maker.op_type in _SHAPED:
        maker = network.makers.get(maker.input[0])
    return maker is not None and maker.op_type == "Cast" and network.types[maker.input[0]] in _HALF


def _between(found: Attention) -> Iterator[str]:
    for nodes, allowed, place in (
        (found.before, _BEFORE, "between its first product and the Softmax"),
        (found.behind, _BEHIND, "between the Softmax and its second product"),
    ):
        others = sorted({node.op_type for node in nodes} - {*allowed})
        if others:
            yield f"{' and '.join(others)} {place}"


def _head(network: Network, found: Attention, aligned: int) -> Iterator[str]:
    shape = network.shapes.get(found.scores.input[0])
    size = shape[-1] if shape else None
    if size is None:
        return
    if not LEAST_HEAD <= size <= MOST_HEAD:
        yield f"its heads have {size} channels, where {LEAST_HEAD} to {MOST_HEAD} are fused"
    elif size % aligned:
        yield f"its heads have {size} channels, no multiple of {aligned}"
