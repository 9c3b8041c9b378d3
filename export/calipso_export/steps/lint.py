"""Lint: the written graph is valid ONNX, uses nothing that only some engines have, and nothing TensorRT refuses."""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import onnx
from onnx import checker

from calipso_export.config import ExportConfig
from calipso_export.lint import ALL, ERROR, float_work, tensorrt_findings
from calipso_export.lint.types import type_name
from calipso_export.precision.islands import TOWER
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.steps.lower import Lowering
from calipso_export.steps.write import Graph
from calipso_runtime.errors import ModelError
from calipso_runtime.head.classes import INPUTS


class Lint:
    """Check the file as it was written."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, Lowering, Graph)
    ensures: ClassVar[tuple[type, ...]] = ()

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        progress("checking the graph", 0, 1)
        graph = made[Graph]
        for path in graph.paths:
            findings = lint(path, opset=made[ExportConfig].opset, targets=graph.manifest.graph["targets"])
            if findings:
                message = f"the exported graph {path.name} is not portable: {'; '.join(findings)}"
                raise ModelError(message)
            broken = broken_claims(onnx.load(path, load_external_data=False), made[Lowering])
            if broken:
                message = f"the exported graph {path.name} is not {made[Lowering].precision.name}: {'; '.join(broken)}"
                raise ModelError(message)
        progress("checking the graph", 1, 1)


def broken_claims(model: onnx.ModelProto, lowering: Lowering) -> list[str]:
    """Products that are not computed in the type that the precision says: one sentence each, none if all are.

    Args:
        model: the written graph; its weights are not read.
        lowering: how it was made.
    """
    precision, graphs = lowering.precision, lowering.graphs
    eight = None if precision.quantised is None else type_name(precision.quantised.kind.value)
    kept = {*graphs.kept, *lowering.pinned}
    findings = []
    for work in float_work(model):
        in_fp32 = work.node in kept or not work.node.startswith(TOWER)
        wanted = "fp32" if in_fp32 else type_name(precision.rest.value)
        if work.type != wanted:
            findings.append(f"{work.node} computes in {work.type}, expected {wanted}")
        factors: tuple[str | None, str | None] = (None, None)
        if work.node in graphs.quantised:
            factors = (eight if precision.activations else None, eight)
        if work.quantised != factors:
            findings.append(f"{work.node} reads {work.quantised}, expected {factors}")
    return findings


def lint(path: Path, *, opset: int | None = None, targets: Collection[str] = ALL) -> list[str]:
    """What keeps a graph from running everywhere: one sentence each, none if it is portable.

    Args:
        path: a `.onnx`, with its external data beside it where it has any.
        opset: the one it has to be of; any where None.
        targets: the releases of TensorRT that have to take it. What only slows them down is not said here.
    """
    try:
        # By path: the only way to check a model beyond protobuf's 2 GB.
        checker.check_model(str(path))
    except checker.ValidationError as error:
        return [f"onnx.checker refuses it: {error}"]
    model = onnx.load(path, load_external_data=False)
    findings = [f"it defines the function {function.name}" for function in model.functions]
    found_there = tensorrt_findings(model, path.parent, targets=targets)
    findings += [str(finding) for finding in found_there if finding.severity == ERROR]
    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset is not None and found != opset:
        findings.append(f"it is of opset {found}, asked for was {opset}")
    findings += [
        f"{value.name} has a fixed batch of {value.type.tensor_type.shape.dim[0].dim_value}"
        for value in (*model.graph.input, *model.graph.output)
        if value.name not in INPUTS and not value.type.tensor_type.shape.dim[0].dim_param
    ]
    return findings
