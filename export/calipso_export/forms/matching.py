"""What the forms share: reading constants, walking a graph, putting a chain of nodes in place of another."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

# Domain of ONNX Runtime's own operators.
ORT_DOMAIN = "com.microsoft"
ORT_DOMAIN_VERSION = 1
# Permutations: maps [B,C,H,W] to rows of channels [B,H,W,C], and back.
TO_ROWS, TO_CHANNELS = (0, 2, 3, 1), (0, 3, 1, 2)


def nodes_of(graph: ir.Graph, *operators: str) -> Iterator[ir.Node]:
    """The nodes of these operators, as the graph was when asked, less those that were removed since."""
    for node in tuple(graph):
        if node.op_type in operators and node.graph is graph:
            yield node


def made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes a value, if it is of this operator (of the standard or ONNX Runtime's domain)."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, or None if several do or it leaves the graph."""
    readers = {id(node): node for node in value.consumers()}
    if len(readers) != 1 or value.is_graph_output():
        return None
    return next(iter(readers.values()))


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of an initializer, or None for anything computed."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number of an initializer of one element, or None."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def scalar_operand(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Of an operator with one scalar constant among its two inputs: the other input, and the scalar."""
    first, second = node.inputs[0], node.inputs[1]
    for other, candidate in ((first, second), (second, first)):
        number = scalar(candidate)
        if other is not None and number is not None and constant(other) is None:
            return other, number
    return None


def is_permutation(node: ir.Node | None, *expected: int) -> bool:
    """Whether a node is a Transpose with exactly this permutation."""
    return node is not None and node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [*expected]


def static_shape(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Sizes of a value, None where dynamic; None where not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def add_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """A new initializer; an equal one of the same name is used again."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    if name in graph.initializers:
        found = graph.initializers[name]
        known = constant(found)
        if known is not None and known.dtype == array.dtype and np.array_equal(known, array):
            return found
        name = f"{name}_{len(graph.initializers)}"
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def viewed(graph: ir.Graph, value: ir.Value, name: str, *sizes: int) -> ir.Value:
    """An initializer's bytes under another shape, as a second initializer; asked for again, the same one."""
    if name in graph.initializers:
        return graph.initializers[name]
    array = constant(value)
    if array is None:
        message = f"{value.name} is no constant"
        raise ValueError(message)
    return add_constant(graph, name, array.reshape(sizes))


def indices(graph: ir.Graph, *numbers: int) -> ir.Value:
    """Starts, ends, axes or steps; equal ones are one initializer."""
    return add_constant(graph, "_".join(("index", *map(str, numbers))), np.array(numbers, np.int64))


def shape_constant(graph: ir.Graph, *sizes: int) -> ir.Value:
    """The second input of a Reshape; equal shapes are one initializer."""
    name = "shape_" + "_".join("any" if size < 0 else str(size) for size in sizes)
    return add_constant(graph, name, np.array(sizes, np.int64))


def reshape(graph: ir.Graph, value: ir.Value, *sizes: int) -> ir.Node:
    """A Reshape to sizes of which one may be -1; 0 is not used, so that it needs no input of that rank."""
    return ir.node("Reshape", [value, shape_constant(graph, *sizes)], {"allowzero": 0})


def transpose(value: ir.Value, *permutation: int) -> ir.Node:
    """A Transpose."""
    return ir.node("Transpose", [value], {"perm": list(permutation)})


def replace_by(graph: ir.Graph, old: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Let the last of some new nodes make a value, and remove what nothing reads any more.

    Raises:
        ValueError: the value is an input of the graph: no node makes it.
    """
    producer = old.producer()
    if producer is None:
        message = f"{old.name} is made by no node"
        raise ValueError(message)
    new = nodes[-1].outputs[0]
    new.shape, new.type = old.shape, old.type
    graph.insert_after(producer, nodes)
    if old.is_graph_output():
        # An output keeps the name that was asked for.
        old.name, new.name = new.name, old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    remove_unread(graph, producer)


def remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node whose outputs nothing reads, and then those before it of which the same is true."""
    if node.graph is not graph or any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    before = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for each in before:
        if each is not None:
            remove_unread(graph, each)


def use_ort_domain(graph: ir.Graph) -> None:
    """Declare ONNX Runtime's domain, for a form that used one of its operators."""
    graph.opset_imports.setdefault(ORT_DOMAIN, ORT_DOMAIN_VERSION)
