"""What a compiler said about graphs of one operator, recorded, and what the lint says about them.

`python tests/export/lint_verdicts.py` records them again, with the TensorRT for RTX that is installed.
"""

import dataclasses
import functools
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import onnx

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.path.insert(0, str(Path(__file__).parent))

from one_operator import Graph
from one_operator_graphs import graphs

from calipso_export.lint import Finding, tensorrt_findings
from calipso_export.lint.rule import ERROR
from calipso_export.lint.targets import RTX
from calipso_runtime.engines.families import NAMES, TENSORRT_RTX, Capability, sm
from calipso_runtime.engines.judge import Judge

RECORD = Path(__file__).with_name("lint_verdicts.json")
TAKEN = "taken"
_MOST_PROCESSES = 4
CAPABILITY: Capability = (8, 9)

# Graphs of which the lint says otherwise than the compiler, by name, and why that stays.
_AS_INT8 = "the compiler quantises to int8 where the graph says uint8: it takes the graph and computes something else"
_INFINITE = "the compiler takes a scale that makes every result 0 or no number"
DISAGREEMENTS: Mapping[str, str] = {
    "QuantizeLinear float float uint8 zero point 0 opset 22": _AS_INT8,
    "QuantizeLinear float16 float16 uint8 zero point 0 opset 22": _AS_INT8,
    "QuantizeLinear bfloat16 bfloat16 uint8 zero point 0 opset 22": _AS_INT8,
    "QuantizeLinear float no zero point opset 22": _AS_INT8,
    "QuantizeLinear float float int8 infinite scale opset 22": _INFINITE,
    "DequantizeLinear int8 float int8 infinite scale opset 22": _INFINITE,
    "If bool opset 20": "the lint does not look into the graphs of a node",
    "Relu float parser opset 26": "the parser looks at no opset: what it takes of a newer one is not known",
}


@dataclasses.dataclass(frozen=True)
class Record:
    """Verdicts of one compiler.

    Attributes:
        compiler: its name, version and the GPU that it compiled for.
        verdicts: "taken", or who refused the graph, by its name.
    """

    compiler: str
    verdicts: Mapping[str, str]


@functools.cache
def table() -> dict[str, Graph]:
    """Every graph, by name."""
    return graphs()


@functools.cache
def recorded() -> Record:
    """What was recorded."""
    document = json.loads(RECORD.read_text(encoding="utf-8"))
    by_name = {name: verdict for verdict, names in document["graphs"].items() for name in names}
    return Record(document["compiler"], by_name)


@functools.cache
def findings() -> dict[str, list[Finding]]:
    """What the lint finds in every graph for TensorRT for RTX."""
    return {name: tensorrt_findings(graph.model(), Path(), targets=RTX) for name, graph in table().items()}


def refused(name: str) -> bool:
    """Whether the compiler refused a graph."""
    return recorded().verdicts[name] != TAKEN


def disagreements() -> set[str]:
    """The graphs of which the lint says otherwise than the compiler."""
    return {
        name for name, found in findings().items() if any(each.severity == ERROR for each in found) != refused(name)
    }


def summary() -> str:
    """The sentence of docs/lint.md that has the numbers."""
    count, unlike = len(table()), len(disagreements())
    number = sum(map(refused, table()))
    return (
        f"{recorded().compiler} parsed and built {count} graphs of one operator. It refused {number} and took "
        f"{count - number}. The lint says the same of {count - unlike} ({(count - unlike) / count:.1%})."
    )


def rows() -> list[str]:
    """The lines of docs/lint.md: how many graphs a rule finds, and how many of them the compiler refused."""
    found = Counter((each.rule, each.severity) for name in table() for each in _once(name))
    agreed = Counter((each.rule, each.severity) for name in table() if refused(name) for each in _once(name))
    return [f"| {rule} | {severity} | {found[rule, severity]} | {agreed[rule, severity]} |" for rule, severity in found]


def _once(name: str) -> list[Finding]:
    return [*{(each.rule, each.severity): each for each in findings()[name]}.values()]


def judge_all(names: Sequence[str]) -> dict[str, str]:
    """Ask the compiler about graphs of the table, by as many processes as there are CPUs."""
    count = min(os.cpu_count() or 1, _MOST_PROCESSES)
    with ThreadPoolExecutor(count) as pool:
        parts = pool.map(_judge_some, (names[first::count] for first in range(count)))
    verdicts = {name: verdict for part in parts for name, verdict in part.items()}
    return {name: verdicts[name] for name in names}


def _judge_some(names: Sequence[str]) -> dict[str, str]:
    with Judge() as judge, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "one.onnx")
        verdicts = {}
        for name in names:
            onnx.save(table()[name].model(), path)
            reasons = judge.judge(path, [CAPABILITY]).refusals
            verdicts[name] = reasons[0].by if reasons else TAKEN
        return verdicts


def record() -> None:
    """Ask the compiler about every graph, and write down what it says."""
    by_verdict: dict[str, list[str]] = {}
    for name, verdict in judge_all(list(table())).items():
        by_verdict.setdefault(verdict, []).append(name)
    compiler = f"{NAMES[TENSORRT_RTX]} {metadata.version('tensorrt-rtx')} for {sm(CAPABILITY)}"
    RECORD.write_text(json.dumps({"compiler": compiler, "graphs": by_verdict}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
