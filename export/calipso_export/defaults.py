"""Inputs that have a default while a graph lies in memory: the head, where it is an input, or token ids.

ONNX lets an initializer have the name of an input. What measures a graph before it is written runs it on pictures
alone so, with the head that is exported. A written graph has no defaults: engines would take them for constants.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def give_defaults(graph: ir.Graph, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Give inputs these values, by name, wherever nobody feeds them."""
    for value in graph.inputs:
        if (array := arrays.get(str(value.name))) is not None:
            value.const_value = ir.tensor(array, name=value.name)
            graph.register_initializer(value)


def without_defaults(model: ir.Model) -> ir.Model:
    """The graph as it is written: a copy where it has defaults, else itself."""
    names = [str(value.name) for value in model.graph.inputs if value.name in model.graph.initializers]
    if not names:
        return model
    copy = model.clone()
    for name in names:
        copy.graph.initializers[name].const_value = None
        del copy.graph.initializers[name]
    return copy
