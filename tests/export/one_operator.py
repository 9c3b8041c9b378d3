"""A graph of one operator, and whether ONNX allows its types."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from lint_samples import BOOL, FP64, INT64
from onnx import TensorProto, defs, helper, shape_inference

OPSET = 20
_SPELLED = {FP64: "double"}


@dataclasses.dataclass(frozen=True)
class Value:
    """An input of the node: one of the graph, or a constant where it has numbers, or a Cast of an input of integers."""

    kind: int
    shape: tuple[int | str, ...]
    numbers: Sequence[float] | None = None
    is_cast: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """One node `n`.

    Attributes:
        case: tells it from other graphs of its operator.
        again: by place, inputs that are the input of another place.
        valid: False for a graph whose types ONNX forbids, though its checker takes it.
    """

    operator: str
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outputs: int = 1
    opset: int = OPSET
    case: str = ""
    again: Mapping[int, int] = dataclasses.field(default_factory=dict)
    valid: bool = True

    @property
    def name(self) -> str:
        """The name of the test."""
        kinds = [kind_name(value.kind) for value in self.inputs if value is not None]
        shown = kinds[:1] if len({*kinds}) <= 1 else kinds
        parts = [f"{key}={value}" for key, value in self.attributes.items() if not isinstance(value, onnx.GraphProto)]
        return " ".join([self.operator, *shown, *parts, *([self.case] if self.case else []), f"opset {self.opset}"])

    def model(self) -> onnx.ModelProto:
        """The graph, with the types and shapes of its outputs as far as ONNX infers them."""
        names = ["" if value is None else f"i{self.again.get(place, place)}" for place, value in enumerate(self.inputs)]
        node = helper.make_node(self.operator, names, [f"y{place}" for place in range(self.outputs)], name="n")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in self.attributes.items())
        named = {name: value for name, value in zip(names, self.inputs, strict=True) if value is not None}
        inputs = [
            helper.make_tensor_value_info(
                f"{name}.integers" if value.is_cast else name, INT64 if value.is_cast else value.kind, value.shape
            )
            for name, value in named.items()
            if value.numbers is None
        ]
        casts = [
            helper.make_node("Cast", [f"{name}.integers"], [name], to=value.kind)
            for name, value in named.items()
            if value.is_cast
        ]
        constants = [
            helper.make_tensor(name, value.kind, value.shape, value.numbers)
            for name, value in named.items()
            if value.numbers is not None
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([*casts, node], "one", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        try:
            return shape_inference.infer_shapes(model, strict_mode=False)
        except shape_inference.InferenceError:
            return model


def kind_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def is_allowed(graph: Graph) -> bool:
    """Whether ONNX has the operator in the opset, for these types."""
    try:
        schema = defs.get_schema(graph.operator, graph.opset, "")
    except defs.SchemaError:
        return False
    allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
    taken: dict[str, str] = {}
    for place, value in enumerate(graph.inputs):
        if value is None:
            continue
        formal = schema.inputs[min(place, len(schema.inputs) - 1)]
        kind = f"tensor({_SPELLED.get(value.kind, kind_name(value.kind))})"
        if kind not in allowed.get(formal.type_str, (formal.type_str,)):
            return False
        mixes = formal.option == defs.OpSchema.FormalParameterOption.Variadic and not formal.is_homogeneous
        if not mixes and taken.setdefault(formal.type_str, kind) != kind:
            return False
    return True


def x(kind: int, *shape: int | str) -> Value:
    """An input of the graph."""
    return Value(kind, shape)


def computed(kind: int, *shape: int) -> Value:
    """Numbers that are computed from an input of integers: a graph gets no shapes as floats."""
    return Value(kind, shape, is_cast=True)


def c(kind: int, numbers: Any) -> Value:
    """A constant."""
    array = np.asarray(numbers)
    number = int if kind in (BOOL, INT64, TensorProto.INT32) else float
    return Value(kind, array.shape, [number(each) for each in array.ravel()])
