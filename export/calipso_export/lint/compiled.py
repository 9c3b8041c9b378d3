"""Asks the compiler that is installed, TensorRT for RTX, whether it takes a graph: the findings of `lint --compile`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from calipso_export.lint.rule import ERROR, Finding
from calipso_export.lint.types import label, tensor_types
from calipso_runtime.engines.families import NAMES, TENSORRT_RTX, Capability, capabilities_of, sm
from calipso_runtime.engines.judge import Judge, Refusal
from calipso_runtime.errors import ModelError

# By who refused a graph: the name of the rule, and what to do.
_RULES: Mapping[str, tuple[str, str]] = {
    "parser": ("compiler-parses", "change this node; the rules of the lint may say how"),
    "builder": ("compiler-builds", "change the graph; the rules of the lint may say how"),
    "crash": ("compiler-crashes", "change the graph: this is a defect of the compiler"),
}
# Types that not every GPU computes in, by the name of the precision.
_RARE: Mapping[str, int] = {"fp8": TensorProto.FLOAT8E4M3FN, "bf16": TensorProto.BFLOAT16}
_ANYWHERE = "fp32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler said about a graph.

    Attributes:
        compiler: its name, its version and the GPUs that it compiled for.
        findings: why it gives no engine; empty where it gives one.
    """

    compiler: str
    findings: tuple[Finding, ...]


def compile_graph(path: Path) -> Compiled:
    """Parse and build a graph for all GPUs that compute in its types, and throw the engine away.

    Args:
        path: a valid `.onnx`, with its external data beside it.

    Raises:
        BackendUnavailableError: TensorRT for RTX is not installed, or does not start.
        EngineBuildError: the machine ran out of memory.
    """
    model = onnx.load(path, load_external_data=False)
    capabilities = _capabilities(model)
    with Judge() as judge:
        verdict = judge.judge(path, capabilities)
    compiler = f"{NAMES[TENSORRT_RTX]} {verdict.version}"
    release = ".".join(verdict.version.split(".")[:2])
    findings = tuple(_finding(model, refusal, compiler, f"{TENSORRT_RTX}-{release}") for refusal in verdict.refusals)
    return Compiled(compiler=f"{compiler} for {', '.join(map(sm, capabilities))}", findings=findings)


def _capabilities(model: onnx.ModelProto) -> tuple[Capability, ...]:
    """The GPUs that a graph can run on, by its types; all of them where its types are not known."""
    try:
        kinds = {*tensor_types(model).values()}
    except ModelError:
        kinds = set()
    rare = (name for name, kind in _RARE.items() if kind in kinds)
    return capabilities_of(None, next(rare, _ANYWHERE))


def _finding(model: onnx.ModelProto, refusal: Refusal, compiler: str, target: str) -> Finding:
    rule, fix = _RULES[refusal.by]
    return Finding(
        rule=rule,
        severity=ERROR,
        where=_where(model, refusal),
        wrong=refusal.wrong,
        fix=fix,
        source=compiler,
        targets=(target,),
    )


def _where(model: onnx.ModelProto, refusal: Refusal) -> str:
    """The node that the compiler names; one without a name goes by its first output."""
    if not refusal.operator:
        return "the graph"
    name = refusal.name or (label(model.graph.node[refusal.place]) if refusal.place is not None else "without a name")
    return f"node {name} ({refusal.operator})"
