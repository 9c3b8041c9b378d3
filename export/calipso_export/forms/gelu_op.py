"""GELU and QuickGELU as ONNX Runtime's own operators: one pass over the activations instead of five.

`Gelu(x) = x (1 + erf(x / sqrt 2)) / 2` is the exact form, not the tanh approximation;
`QuickGelu(x) = x sigmoid(alpha x)`. Both are in the domain com.microsoft.
"""

import math

import numpy as np
import onnx_ir as ir

from calipso_export.forms.matching import (
    ORT_DOMAIN,
    made_by,
    nodes_of,
    replace_by,
    scalar,
    scalar_operand,
    use_ort_domain,
)


def fuse_gelu(graph: ir.Graph) -> int:
    """Replace `Mul(x, Mul(0.5, Add(Erf(Div(x, sqrt 2)), 1)))` and `Mul(x, Sigmoid(Mul(x, alpha)))`."""
    changed = 0
    for node in nodes_of(graph, "Mul"):
        fused = _gelu(node) or _quick_gelu(node)
        if fused is not None:
            replace_by(graph, node.outputs[0], [fused])
            use_ort_domain(graph)
            changed += 1
    return changed


def _gelu(node: ir.Node) -> ir.Node | None:
    for x, gate in _both_orders(node):
        half = made_by(gate, "Mul")
        operand = None if half is None else scalar_operand(half)
        if operand is None or operand[1] != 0.5:  # noqa: PLR2004 - of the formula
            continue
        one = made_by(operand[0], "Add")
        shifted = None if one is None else scalar_operand(one)
        erf = None if shifted is None or shifted[1] != 1 else made_by(shifted[0], "Erf")
        divide = None if erf is None else made_by(erf.inputs[0], "Div")
        if divide is not None and divide.inputs[0] is x and _is(scalar(divide.inputs[1]), math.sqrt(2)):
            return ir.node("Gelu", [x], domain=ORT_DOMAIN)
    return None


def _quick_gelu(node: ir.Node) -> ir.Node | None:
    for x, gate in _both_orders(node):
        sigmoid = made_by(gate, "Sigmoid")
        scaled = None if sigmoid is None else made_by(sigmoid.inputs[0], "Mul")
        operand = None if scaled is None else scalar_operand(scaled)
        if operand is not None and operand[0] is x:
            return ir.node("QuickGelu", [x], {"alpha": operand[1]}, domain=ORT_DOMAIN)
    return None


def _both_orders(node: ir.Node) -> tuple[tuple[ir.Value | None, ir.Value | None], ...]:
    first, second = node.inputs[0], node.inputs[1]
    return (first, second), (second, first)


def _is(number: float | None, expected: float) -> bool:
    return number is not None and bool(np.isclose(number, expected, rtol=1e-6))
