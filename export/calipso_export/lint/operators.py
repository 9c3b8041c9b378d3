"""What TensorRT asks of a node: its attributes, constants, outputs and types."""

import math
from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto

from calipso_export.lint.network import Network, attribute, input_at, numbers
from calipso_export.lint.rule import NodeCheck
from calipso_export.lint.types import type_name

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
INTEGERS = (TensorProto.INT32, TensorProto.INT64)
# Results are written in these, and read by DequantizeLinear alone.
QUANTISED = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1)
MOST_KEPT = 3840
# Source: TensorRT's documentation of IAttention; TensorRT for RTX 1.7's builder refuses smaller and larger heads.
LEAST_HEAD, MOST_HEAD = 16, 256
# A scale of a Resize is fp32 beside any picture; the others read a type, an index or a probability, and compute nothing
# with it.
MAY_MIX = ("BatchNormalization", "CastLike", "Dropout", "OneHot", "Resize")
# By operator, types of the first input that ONNX allows and TensorRT for RTX 1.7 refuses.
REFUSED_BY_RTX = {
    **dict.fromkeys(("Conv", "Erf", "Exp", "Gemm", "MatMul", "Softmax", "PRelu"), INTEGERS),
    **dict.fromkeys(("ReduceL2", "ReduceLogSum", "ReduceLogSumExp"), INTEGERS),
    **dict.fromkeys(("ConvTranspose", "HardSwish", "LpPool", "Mish"), (TensorProto.BFLOAT16,)),
    **dict.fromkeys(("IsNaN", "Squeeze", "Unsqueeze"), (TensorProto.FLOAT8E4M3FN, TensorProto.INT4)),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), (TensorProto.BOOL,)),
    "DequantizeLinear": (TensorProto.INT32,),
    "Einsum": (*INTEGERS, TensorProto.INT8),
    "Mod": (TensorProto.INT8,),
    "Relu": (TensorProto.INT32,),
    "Resize": (*INTEGERS, TensorProto.BOOL),
}
# By mode, how many axes a Resize may change, counted from the last one.
_RESIZED_AXES = {"linear": 3, "cubic": 2}


def is_there(_network: Network, _node: onnx.NodeProto) -> str:
    """The operator itself is the fault."""
    return "the parser has no importer for it"


def attribute_is(name: str, *expected: int | str) -> NodeCheck:
    """An attribute has one of the values that TensorRT knows; the first is the default."""

    def check(_network: Network, node: onnx.NodeProto) -> str | None:
        found = attribute(node, name, expected[0])
        return None if found in expected else f"{name} is {found}"

    return check


def attribute_absent(*names: str) -> NodeCheck:
    """An attribute is not given at all, not even with its default."""

    def check(_network: Network, node: onnx.NodeProto) -> str | None:
        given = [each.name for each in node.attribute if each.name in names]
        return f"{given[0]} is given" if given else None

    return check


def ones(name: str) -> NodeCheck:
    """A list of numbers is empty, or all ones."""

    def check(_network: Network, node: onnx.NodeProto) -> str | None:
        found = numbers(node, name)
        return None if all(each == 1 for each in found) else f"{name} are {list(found)}"

    return check


def constant_input(index: int, name: str) -> NodeCheck:
    """An input is known when the engine is built."""

    def check(network: Network, node: onnx.NodeProto) -> str | None:
        given = input_at(node, index)
        return None if given is None or given in network.constants else f"{name} is computed ({given})"

    return check


def inputs_absent(first: int, names: tuple[str, ...]) -> NodeCheck:
    """Optional inputs, from one on, are left out."""

    def check(_network: Network, node: onnx.NodeProto) -> str | None:
        given = [name for index, name in enumerate(names, first) if input_at(node, index) is not None]
        return f"{' and '.join(given)} given" if given else None

    return check


def first_output_only(_network: Network, node: onnx.NodeProto) -> str | None:
    """Nothing but the first output has a name: the parser refuses the others even where nobody reads them."""
    named = [name for name in node.output[1:] if name]
    return f"it has the further outputs {', '.join(named)}" if named else None


def squeezed_axes_known(network: Network, node: onnx.NodeProto) -> str | None:
    """Which axes a Squeeze removes follows from the graph, not from a picture's shape."""
    given = input_at(node, 1) is not None or bool(numbers(node, "axes"))
    shape = network.shapes.get(node.input[0])
    known = shape is not None and None not in shape
    return None if given or known else "it has no axes, and its input has a dynamic shape"


def kept_up_to(most: int) -> NodeCheck:
    """TopK keeps few enough for TensorRT's kernels."""

    def check(network: Network, node: onnx.NodeProto) -> str | None:
        given = input_at(node, 1)
        if given is None or given not in network.constants:
            return None
        kept = int(network.array(given).max(initial=0))
        return None if kept <= most else f"K is {kept}"

    return check


def no_training(network: Network, node: onnx.NodeProto) -> str | None:
    """A Dropout that is left in a graph does nothing."""
    given = input_at(node, 2)
    if given is None:
        return None
    if given not in network.constants:
        return f"training_mode is computed ({given})"
    return "training_mode is true" if network.array(given).any() else None


def scales_fit_axes(network: Network, node: onnx.NodeProto) -> str | None:
    """Computed scales of a Resize are for all axes in order."""
    given, axes = input_at(node, 2), numbers(node, "axes")
    if given is None or given in network.constants or not axes:
        return None
    shape = network.shapes.get(node.input[0])
    rank = len(axes) if shape is None else len(shape)
    if list(axes) == list(range(rank)):
        return None
    return f"its scales are computed ({given}) and for the axes {list(axes)} alone"


def sizes_fit_axes(network: Network, node: onnx.NodeProto) -> str | None:
    """Constant sizes of a Resize for some axes leave no other axis dynamic."""
    given, axes, shape = input_at(node, 3), numbers(node, "axes"), network.shapes.get(node.input[0])
    if given is None or given not in network.constants or not axes or shape is None:
        return None
    resized = {axis % len(shape) for axis in axes}
    dynamic = [axis for axis, size in enumerate(shape) if size is None and axis not in resized]
    if not dynamic:
        return None
    return f"its sizes are constant ({given}) and for the axes {list(axes)} alone, and the axes {dynamic} are dynamic"


def inner_axes(network: Network, node: onnx.NodeProto) -> str | None:
    """A Resize that interpolates changes the last axes alone, as far as its scales or sizes are known."""
    mode, shape = str(attribute(node, "mode", "nearest")), network.shapes.get(node.input[0])
    if mode not in _RESIZED_AXES or shape is None:
        return None
    # Of a cubic one the parser looks at scales of all axes alone; the builder takes the others.
    if mode == "cubic" and (input_at(node, 3) is not None or len(numbers(node, "axes") or shape) < len(shape)):
        return None
    outer = [axis for axis in _resized(network, node, shape) if axis < len(shape) - _RESIZED_AXES[mode]]
    return f"its mode is {mode}, and it resizes the axes {outer}" if outer else None


def _resized(network: Network, node: onnx.NodeProto, shape: tuple[int | None, ...]) -> list[int]:
    """The axes whose size is known to change."""
    axes = [axis % len(shape) for axis in numbers(node, "axes") or range(len(shape))]
    scales, sizes = (
        network.array(given).tolist() if given is not None and given in network.constants else []
        for given in (input_at(node, 2), input_at(node, 3))
    )
    scaled = [axis for axis, scale in zip(axes, scales, strict=False) if scale != 1]
    return scaled + [axis for axis, size in zip(axes, sizes, strict=False) if shape[axis] not in (None, size)]


def symmetric(*but: int) -> NodeCheck:
    """TensorRT quantises around zero, but for some types."""

    def check(network: Network, node: onnx.NodeProto) -> str | None:
        given = input_at(node, 2)
        if given is None:
            return None
        if given not in network.constants:
            return f"its zero point {given} is computed"
        return None if network.types[given] in but else _off_zero(network, given)

    return check


def off_zero(network: Network, node: onnx.NodeProto) -> str | None:
    """A zero point of fp8 is zero."""
    given = input_at(node, 2)
    if given not in network.constants or given is None or network.types[given] != TensorProto.FLOAT8E4M3FN:
        return None
    return _off_zero(network, given)


def _off_zero(network: Network, name: str) -> str | None:
    return f"its zero point {name} is not 0" if network.array(name).astype(np.float32).any() else None


def constant_scale(network: Network, node: onnx.NodeProto) -> str | None:
    """Scales are known when an engine is built."""
    given = node.input[1]
    return None if given in network.constants else f"its scale {given} is computed"


def positive_scale(network: Network, node: onnx.NodeProto) -> str | None:
    """Scales can be divided by."""
    given = node.input[1]
    if given not in network.constants:
        return None
    scale = network.array(given).astype(np.float32)
    positive = bool(np.all((scale > 0) & np.isfinite(scale)))
    return None if positive else f"its scale {given} has values that are not positive: {scale.min()} is the least"


def float_input(network: Network, node: onnx.NodeProto) -> str | None:
    """ONNX has it for integers too, TensorRT has not."""
    kind = network.types[node.input[0]]
    return f"it is over {type_name(kind)}" if kind in INTEGERS else None


def refused_type(network: Network, node: onnx.NodeProto) -> str | None:
    """TensorRT for RTX has the operator, for other types."""
    kind = network.types[node.input[0]]
    return f"it is over {type_name(kind)}" if kind in REFUSED_BY_RTX[node.op_type] else None


def integer_power(network: Network, node: onnx.NodeProto) -> str | None:
    """Neither base nor exponent of a Pow is an integer."""
    found = [name for name in node.input if network.types.get(name) in INTEGERS]
    return f"{found[0]} is {type_name(network.types[found[0]])}" if found else None


def cast_only(*but: int) -> NodeCheck:
    """What is quantised is converted by QuantizeLinear and DequantizeLinear alone, but for some types."""

    def check(network: Network, node: onnx.NodeProto) -> str | None:
        found = {network.types.get(name) for name in (*node.input, *node.output)} & ({*QUANTISED} - {*but})
        return f"it converts {' and '.join(sorted(map(type_name, filter(None, found))))}" if found else None

    return check


def lower_case(_network: Network, node: onnx.NodeProto) -> str | None:
    """Einsum names its axes by lower-case letters."""
    equation = str(attribute(node, "equation", ""))
    return None if equation == equation.lower() else f"its equation is {equation}"


def plain_equation(_network: Network, node: onnx.NodeProto) -> str | None:
    """Every axis of an Einsum's inputs has a letter of its own."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    repeated = any(count > 1 for term in terms for count in Counter(term.replace(".", "")).values())
    return f"its equation is {equation}" if "..." in equation or repeated else None


def no_graphs(_network: Network, node: onnx.NodeProto) -> str | None:
    """No rule looks into the graphs of If, Loop and Scan; nothing that is exported needs them."""
    inner = any(each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for each in node.attribute)
    return "it has a graph of its own, which is not checked" if inner else None


def one_float_type(*may_mix: str) -> NodeCheck:
    """A strongly typed network converts nothing by itself; onnx.checker does not look at types at all."""

    def check(network: Network, node: onnx.NodeProto) -> str | None:
        return None if node.op_type in may_mix else mixed_floats(network, node)

    return check


def mixed_floats(network: Network, node: onnx.NodeProto) -> str | None:
    """All floats that a node reads are of one type."""
    kinds = {network.types.get(name, TensorProto.UNDEFINED) for name in node.input}
    found = sorted(type_name(kind) for kind in kinds & {*FLOATS, TensorProto.DOUBLE})
    return f"its inputs are of {' and '.join(found)}" if len(found) > 1 else None


def small_heads(network: Network, node: onnx.NodeProto) -> str | None:
    """The heads of an Attention, with 3D inputs too, are small enough for a fused kernel."""
    size = _head_size(network, node)
    return f"its heads have {size} channels" if size is not None and size > MOST_HEAD else None


def large_heads(network: Network, node: onnx.NodeProto) -> str | None:
    """The heads of an Attention are large enough for a fused kernel."""
    size = _head_size(network, node)
    return f"its heads have {size} channels" if size is not None and size < LEAST_HEAD else None


def _head_size(network: Network, node: onnx.NodeProto) -> int | None:
    shape = network.shapes.get(node.input[0])
    if shape is None or shape[-1] is None:
        return None
    heads = int(attribute(node, "q_num_heads", 1)) if len(shape) == 3 else 1  # noqa: PLR2004 - [batch, tokens, width]
    return math.ceil(shape[-1] / max(heads, 1))


def half_inputs(network: Network, node: onnx.NodeProto) -> str | None:
    """An Attention is over 16 bits: fused kernels have no other type."""
    kind = network.types[node.input[0]]
    return f"it is over {type_name(kind)}" if kind == TensorProto.FLOAT else None


def separate_inputs(_network: Network, node: onnx.NodeProto) -> str | None:
    """Queries and keys of an Attention are two tensors."""
    return f"{node.input[0]} is both queries and keys" if node.input[0] == node.input[1] else None


def softcap(_network: Network, node: onnx.NodeProto) -> str | None:
    """Scores of an Attention are not squashed."""
    found = [each.f for each in node.attribute if each.name == "softcap"]
    return f"softcap is {found[0]}" if any(found) else None
