"""Static lint for TensorRT: what a strongly typed network refuses, found without an engine.

`rules` has the table: what is wrong, for which releases, what to do, and where that is written.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path

import onnx
from onnx import checker

from calipso_export.lint.compiled import compile_graph
from calipso_export.lint.network import read_network
from calipso_export.lint.rule import ERROR, WARNING, Finding
from calipso_export.lint.rules import FIRST, RULES
from calipso_export.lint.targets import ALL, TARGETS, declared, named_targets
from calipso_export.lint.types import Work, float_work, tensor_types
from calipso_runtime.bundle import open_bundle
from calipso_runtime.errors import ModelError

__all__ = [
    "ALL",
    "ERROR",
    "TARGETS",
    "WARNING",
    "Finding",
    "Linted",
    "Work",
    "declared",
    "float_work",
    "lint_file",
    "named_targets",
    "tensor_types",
    "tensorrt_findings",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linted:
    """What a lint found.

    Attributes:
        findings: of the rules, then of the compiler.
        compiler: the compiler that was asked, with its version and the GPUs that it compiled for; None for none.
    """

    findings: list[Finding]
    compiler: str | None = None


def lint_file(path: Path, *, targets: Collection[str] = ALL, compiles: bool = False) -> Linted:
    """What TensorRT would refuse of a bundle's graph, or of any graph.

    Args:
        path: a bundle, whose hashes are checked, or a `.onnx` with its external data beside it.
        targets: names out of `TARGETS`.
        compiles: ask TensorRT for RTX itself too.

    Raises:
        BundleError: there is nothing there, or no bundle, or a bundle that was changed.
        ModelError: the file is no valid graph.
        BackendUnavailableError: TensorRT for RTX is to be asked, and is not installed, or does not start.
        EngineBuildError: it ran out of memory.
    """
    path = path if path.is_file() else open_bundle(path).model_path
    try:
        # By path: the only way to check a model beyond protobuf's 2 GB.
        checker.check_model(str(path))
    except checker.ValidationError as error:
        message = f"{path} is no valid ONNX graph, or its external data is not beside it: {error}"
        raise ModelError(message) from error
    found = tensorrt_findings(onnx.load(path, load_external_data=False), path.parent, targets=targets)
    if not compiles:
        return Linted(findings=found)
    compiled = compile_graph(path)
    return Linted(findings=[*found, *compiled.findings], compiler=compiled.compiler)


def tensorrt_findings(model: onnx.ModelProto, folder: Path, *, targets: Collection[str] = ALL) -> list[Finding]:
    """What TensorRT would refuse, or compute differently; none if it takes the graph.

    Args:
        model: a valid graph; external data need not be loaded.
        folder: where its external data lies: scales and zero points are read from there.
        targets: names out of `TARGETS`.
    """
    network = read_network(model, folder)
    found = [each for rule in FIRST for each in rule.findings(network)]
    if not found:
        found = [each for rule in RULES for each in rule.findings(network)]
    return _merged(found, targets)


def _merged(found: list[Finding], targets: Collection[str]) -> list[Finding]:
    """The findings for some targets; what rules of several releases say alike is said once."""
    merged: dict[tuple[str, ...], Finding] = {}
    for each in found:
        held = tuple(name for name in each.targets if name in targets)
        if held:
            key = (each.rule, each.severity, each.where, each.wrong, each.fix)
            said = merged.get(key, dataclasses.replace(each, targets=()))
            source = said.source if each.source in said.source else f"{said.source}; {each.source}"
            merged[key] = dataclasses.replace(said, source=source, targets=(*said.targets, *held))
    return list(merged.values())
