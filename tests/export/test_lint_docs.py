"""docs/lint.md has the table of the lint as it is."""

from pathlib import Path

import lint_verdicts

from calipso_export.lint.rule import Nodes, Rule, Tensors
from calipso_export.lint.rules import FIRST, RULES
from calipso_export.lint.targets import ALL, TARGETS, TENSORRT

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lint.md"


def about(rule: Rule) -> str:
    match rule.find:
        case Nodes(patterns=patterns):
            return "every operator" if patterns == "*" else patterns.replace("*", "\\*").replace(" ", ", ")
        case Tensors():
            return "tensors"
        case _:
            return "the graph"


def row(rule: Rule) -> str:
    names = {ALL: "all", TENSORRT: "all but rtx-1.7"}
    held = names.get(rule.targets) or ", ".join(name.removeprefix("tensorrt-") for name in rule.targets)
    return f"| {rule.name} | {about(rule)} | {rule.severity} | {held} | {rule.fix} | {rule.source} |"


def rows_of(heading: str) -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def test_the_page_has_every_rule_in_the_order_of_the_table() -> None:
    assert rows_of("Rules") == [row(rule) for rule in (*FIRST, *RULES)]


def test_the_page_has_every_target_with_its_opset() -> None:
    assert rows_of("Targets") == [
        f"| `{target.name}` | {target.max_opset} | {target.source} |" for target in TARGETS.values()
    ]


def test_the_page_says_how_many_graphs_a_compiler_judged() -> None:
    assert f"\n{lint_verdicts.summary()}\n" in PAGE.read_text(encoding="utf-8")


def test_the_page_has_the_graphs_that_each_rule_found_and_the_compiler_refused() -> None:
    assert rows_of("Judged by a compiler") == lint_verdicts.rows()


def test_the_page_has_every_graph_that_lint_and_compiler_disagree_about() -> None:
    assert rows_of("Where lint and compiler disagree") == [
        f"| {name} | {reason} |" for name, reason in lint_verdicts.DISAGREEMENTS.items()
    ]
