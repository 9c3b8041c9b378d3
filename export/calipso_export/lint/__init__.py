"""Static lint for TensorRT: what a strongly typed network refuses, found without an engine.

One rule is one function and one line in a table: `operators.RULES` for what a node may be, `tensors.RULES`
for which types a tensor may have. A rule answers None, or what is wrong as the end of a sentence.
The rules follow the restrictions in onnx-tensorrt's `docs/operators.md` and its importers.
"""

from fnmatch import fnmatchcase
from pathlib import Path

import onnx

from calipso_export.lint import operators, tensors
from calipso_export.lint.network import read_network
from calipso_export.lint.types import Work, float_work, label, tensor_types
from calipso_runtime.errors import ModelError

__all__ = ["Work", "float_work", "tensor_types", "tensorrt_findings"]


def tensorrt_findings(model: onnx.ModelProto, folder: Path) -> list[str]:
    """What TensorRT would refuse, or compute differently: one sentence each, none if it takes the graph.

    Args:
        model: a valid graph of standard operators; external data need not be loaded.
        folder: where its external data lies: scales and zero points are read from there.
    """
    try:
        network = read_network(model, folder)
    except ModelError as error:
        return [str(error)]
    findings = [
        f"node {label(node)} is {node.op_type}, {wrong}"
        for node in model.graph.node
        for patterns, rule in operators.RULES
        if any(fnmatchcase(node.op_type, pattern) for pattern in patterns)
        if (wrong := rule(network, node)) is not None
    ]
    findings += [
        f"{network.describe(name)} is {wrong}"
        for name, kind in network.types.items()
        if kind in tensors.RULES and (wrong := tensors.RULES[kind](network, name)) is not None
    ]
    return findings
