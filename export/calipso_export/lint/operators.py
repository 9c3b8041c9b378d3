"""Which operators TensorRT takes, and with which attributes, constants and types."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from calipso_export.lint.network import Network, attribute, input_at
from calipso_export.lint.types import type_name

# Answers how a sentence about the node goes on that says what is wrong with it.
Rule = Callable[[Network, onnx.NodeProto], str | None]

_MOST_KEPT = 3840
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
# A scale of a Resize is fp32 beside any picture; the others read a type or a probability, and compute nothing with it.
_MAY_MIX = ("CastLike", "Dropout", "Resize")


def refused(why: str) -> Rule:
    """The operator itself is the fault."""

    def rule(_network: Network, _node: onnx.NodeProto) -> str:
        return why

    return rule


def attribute_is(name: str, expected: int | str) -> Rule:
    """An attribute keeps its default: TensorRT knows no other value."""

    def rule(_network: Network, node: onnx.NodeProto) -> str | None:
        found = attribute(node, name, expected)
        return None if found == expected else f"whose {name} is {found}: expected {expected}"

    return rule


def constant_input(index: int, name: str) -> Rule:
    """An input that an engine has to know when it is built."""

    def rule(network: Network, node: onnx.NodeProto) -> str | None:
        given = input_at(node, index)
        return None if given is None or given in network.constants else f"with computed {name}: expected a constant"

    return rule


def keeps_few(network: Network, node: onnx.NodeProto) -> str | None:
    """TopK keeps few enough for TensorRT's kernels."""
    given = input_at(node, 1)
    if given is None or given not in network.constants:
        return f"whose K is computed: expected a constant below {_MOST_KEPT}"
    kept = int(network.array(given).max(initial=0))
    return None if kept < _MOST_KEPT else f"whose K is {kept}: expected less than {_MOST_KEPT}"


def first_output_only(network: Network, node: onnx.NodeProto) -> str | None:
    """Mean and deviation of a LayerNormalization stay inside of it."""
    used = [name for name in filter(None, node.output[1:]) if name in network.readers or name in network.outputs]
    return f"whose output {used[0]} is used: expected the first one alone" if used else None


def symmetric(network: Network, node: onnx.NodeProto) -> str | None:
    """TensorRT quantises around zero."""
    given = input_at(node, 2)
    if given is None:
        return None
    if given not in network.constants:
        return f"whose zero point {given} is computed: expected a constant of zeros, or none"
    zeros = not network.array(given).astype(np.float32).any()
    return None if zeros else f"whose zero point {given} is not 0: expected symmetric quantisation"


def positive_scale(network: Network, node: onnx.NodeProto) -> str | None:
    """Scales are known when an engine is built, and can be divided by."""
    given = node.input[1]
    if given not in network.constants:
        return f"whose scale {given} is computed: expected a constant"
    scale = network.array(given).astype(np.float32)
    positive = bool(np.all((scale > 0) & np.isfinite(scale)))
    return None if positive else f"whose scale {given} has values that are not positive: {scale.min()} is the least"


def float_input(network: Network, node: onnx.NodeProto) -> str | None:
    """ONNX has it for integers too, TensorRT has not."""
    kind = network.types[node.input[0]]
    return None if kind in _FLOATS else f"over {type_name(kind)}: expected fp32, fp16 or bf16"


def plain_equation(_network: Network, node: onnx.NodeProto) -> str | None:
    """Einsum names its axes by lower-case letters, all of them."""
    equation = str(attribute(node, "equation", ""))
    plain = equation == equation.lower() and "..." not in equation
    return None if plain else f"whose equation is {equation}: expected lower-case letters and no ellipsis"


def no_control_flow(_network: Network, node: onnx.NodeProto) -> str | None:
    """No rule looks into the graphs of If, Loop and Scan; nothing that is exported needs them."""
    inner = any(each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for each in node.attribute)
    return "whose own graph cannot be checked: expected no control flow" if inner else None


def one_float_type(network: Network, node: onnx.NodeProto) -> str | None:
    """A strongly typed network converts nothing by itself; onnx.checker does not look at types at all."""
    kinds = {network.types.get(name, TensorProto.UNDEFINED) for name in node.input}
    found = sorted(type_name(kind) for kind in kinds & {*_FLOATS, TensorProto.DOUBLE})
    mixed = len(found) > 1 and node.op_type not in _MAY_MIX
    return f"whose inputs are of {' and '.join(found)}: expected one float type" if mixed else None


# Operators as patterns of file names, and a rule for them.
RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    # Standard from opset 23, but rejected or unfused by most engines that are in the field.
    (("Attention",), refused("which most engines lack")),
    (
        ("ConvInteger", "MatMulInteger", "QLinear*", "DynamicQuantizeLinear"),
        refused("which TensorRT lacks: expected QuantizeLinear and DequantizeLinear around a float operator"),
    ),
    (
        ("Scatter", "ScatterElements"),
        refused("which is a plugin in TensorRT: version-compatible engines cannot hold it"),
    ),
    (("Resize",), attribute_is("antialias", 0)),
    (("Resize",), attribute_is("keep_aspect_ratio_policy", "stretch")),
    (("TopK",), attribute_is("sorted", 1)),
    (("TopK",), keeps_few),
    (("ScatterND",), attribute_is("reduction", "none")),
    (("Reduce*", "Squeeze", "Unsqueeze"), constant_input(1, "axes")),
    (("Slice",), constant_input(3, "axes")),
    (("OneHot",), constant_input(1, "depth")),
    (("LayerNormalization",), first_output_only),
    (("QuantizeLinear", "DequantizeLinear"), symmetric),
    (("QuantizeLinear", "DequantizeLinear"), positive_scale),
    (("Clip", "Erf", "Exp", "Softmax"), float_input),
    (("Einsum",), plain_equation),
    (("*",), no_control_flow),
    (("*",), one_float_type),
)
