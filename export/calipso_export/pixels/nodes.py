"""Writes the nodes that stand before a graph, one after another."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.forms.matching import add_constant
from calipso_export.pixels.filters import PRECISION_BITS

if TYPE_CHECKING:
    from collections.abc import Callable

# What the nodes are called after: none of them is part of the encoder, so that all stay in fp32.
SCOPE = "pixels"
# Axes of planes, [B,3,H,W].
ROWS, COLUMNS = 2, 3


class Nodes:
    """Nodes under way, and their constants.

    Args:
        graph: gets the constants at once; the nodes are put into it by who asked for them.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.made: list[ir.Node] = []
        self._counts = Counter[str]()

    def op(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """The output of a new node."""
        self._counts[operator] += 1
        name = f"{SCOPE}/{operator}_{self._counts[operator]}"
        node = ir.node(operator, list(inputs), attributes, name=name)
        node.outputs[0].name = name
        self.made.append(node)
        return node.outputs[0]

    def constant(self, array: npt.NDArray[Any]) -> ir.Value:
        """A new initializer; integers are int64."""
        self._counts["constant"] += 1
        return add_constant(self.graph, f"{SCOPE}.{self._counts['constant']}", np.asarray(array))

    def numbers(self, *values: int) -> ir.Value:
        """A constant of integers, int64 [N]."""
        return self.constant(np.array(values, np.int64))

    def double(self, value: float) -> ir.Value:
        """A constant, float64 []."""
        return self.constant(np.array(value, np.float64))

    def choice(self, condition: ir.Value, *branches: "Callable[[Nodes], ir.Value]") -> ir.Value:
        """What the first of two branches makes where a condition holds, else what the second makes."""
        attributes = {}
        for attribute, branch in zip(("then_branch", "else_branch"), branches, strict=True):
            own = Nodes(self.graph)
            own._counts = self._counts
            result = branch(own)
            result.type = ir.TensorType(ir.DataType.FLOAT)
            graph = ir.Graph([], [result], nodes=own.made, opset_imports=self.graph.opset_imports, name=attribute)
            attributes[attribute] = graph
        return self.op("If", condition, **attributes)

    def slice(self, value: ir.Value, axis: int, first: int, last: int) -> ir.Value:
        """A part of a value along one axis."""
        return self.op("Slice", value, self.numbers(first), self.numbers(last), self.numbers(axis))


def fixed_point(nodes: Nodes, high: ir.Value, low: ir.Value, bits: int) -> ir.Value:
    """The levels of a pass, float32, out of its two sums: see `by_matmul`."""

    def scaled(value: ir.Value, shift: int) -> ir.Value:
        # By a power of two: exact.
        return nodes.op("Floor", nodes.op("Mul", value, nodes.constant(np.array(2.0**-shift, np.float32))))

    half = nodes.constant(np.array(2.0 ** (PRECISION_BITS - 1 - bits), np.float32))
    total = nodes.op("Add", nodes.op("Add", high, scaled(low, bits)), half)
    ends = (nodes.constant(np.array(level, np.float32)) for level in (0, 255))
    return nodes.op("Clip", scaled(total, PRECISION_BITS - bits), *ends)
