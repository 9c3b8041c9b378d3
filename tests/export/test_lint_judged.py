"""The lint's rules for TensorRT for RTX say what its compiler says of the same graphs."""

from pathlib import Path

import lint_verdicts
import onnx
import pytest
from lint_verdicts import CAPABILITY, DISAGREEMENTS, TAKEN

from calipso_export.lint.rule import ERROR, Rule
from calipso_export.lint.rules import FIRST, RULES
from calipso_export.lint.targets import RTX
from calipso_runtime.engines.judge import Judge
from needs import NEEDS_RTX

AGREED = 0.99
# What TensorRT's documents refuse and this compiler takes, and what neither they nor the lint once knew.
ONCE_WRONG = (
    "TopK float int64 sorted=0 largest=1 opset 20",
    "Clip int64 bounds opset 20",
    "QuantizeLinear float float float8e4m3fn zero point 1 opset 22",
    "Cast int8 to=1 to float opset 22",
    "ScatterElements float int64 float reduction=add opset 20",
    "Squeeze float int64 computed axes opset 20",
    "Unsqueeze float int64 computed axes opset 20",
    "Resize float axes=[2, 3] mode=linear computed scales opset 20",
    "Attention float16 one tensor opset 24",
)
EVERY = 50


def test_the_record_is_of_the_graphs_of_the_table() -> None:
    assert set(lint_verdicts.recorded().verdicts) == set(lint_verdicts.table())


def test_lint_and_compiler_disagree_about_nothing_that_is_not_explained() -> None:
    assert lint_verdicts.disagreements() == set(DISAGREEMENTS)
    assert all(DISAGREEMENTS.values())


def test_lint_and_compiler_agree_about_99_percent_of_more_than_500_graphs() -> None:
    count = len(lint_verdicts.table())

    assert count >= 500
    assert 1 - len(DISAGREEMENTS) / count >= AGREED


# A node of another domain is refused before a type is known; the other two are explained among the disagreements.
NOT_JUDGED = {"standard-operators", "no-control-flow", "opset"}


@pytest.mark.parametrize(
    "rule",
    [rule for rule in (*FIRST, *RULES) if rule.severity == ERROR and {*RTX} <= {*rule.targets}],
    ids=lambda rule: f"{rule.name} {' '.join(rule.targets)}",
)
def test_every_rule_is_broken_by_a_graph_that_the_compiler_refuses(rule: Rule) -> None:
    refused = {
        each.fix
        for name, found in lint_verdicts.findings().items()
        for each in found
        if each.rule == rule.name and lint_verdicts.refused(name)
    }

    assert rule.fix in refused or rule.name in NOT_JUDGED


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_a_rule_that_was_wrong_once_says_what_the_compiler_says(name: str) -> None:
    refuses = any(each.severity == ERROR for each in lint_verdicts.findings()[name])

    assert refuses == lint_verdicts.refused(name)


@pytest.mark.parametrize(
    "step", [pytest.param(EVERY, marks=NEEDS_RTX), pytest.param(1, marks=(*NEEDS_RTX, pytest.mark.slow))]
)
def test_the_compiler_says_of_many_graphs_what_was_recorded(step: int) -> None:
    names = [*ONCE_WRONG, *list(lint_verdicts.table())[::step]]

    assert lint_verdicts.judge_all(names) == {name: lint_verdicts.recorded().verdicts[name] for name in names}


@pytest.mark.parametrize("domain", [pytest.param("com.example", marks=NEEDS_RTX)])
def test_an_operator_of_another_domain_is_refused(judge: Judge, domain: str, tmp_path: Path) -> None:
    model = lint_verdicts.table()["Relu float parser opset 20"].model()
    model.graph.node[0].domain, model.graph.node[0].op_type = domain, "Own"
    model.opset_import.add(domain=domain, version=1)
    onnx.save(model, tmp_path / "one.onnx")

    assert judge.judge(tmp_path / "one.onnx", [CAPABILITY]).refusals != ()


def test_what_is_taken_is_recorded_as_such() -> None:
    assert lint_verdicts.recorded().verdicts["Relu float parser opset 20"] == TAKEN
