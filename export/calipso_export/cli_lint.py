"""`calipso lint`: what releases of TensorRT would refuse of a graph, or run slowly, found without an engine."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from calipso_export.cli import needs_the_exporter
from calipso_runtime.commands.tables import plain_console

if TYPE_CHECKING:
    from calipso_export.lint import Finding, Linted

_MOST_SHOWN = 3
# What the names of the compiler's own findings begin with.
COMPILER = "compiler-"
_PATH = click.Path(path_type=Path)


@click.command("lint")
@click.argument("path", type=_PATH)
@click.option("--target", "targets", multiple=True, metavar="TARGET", help="A release, such as tensorrt-10.3; repeat.")
@click.option("--compile", "compiles", is_flag=True, help="Ask TensorRT for RTX itself too (extra rtx); needs no GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print every finding as JSON.")
@click.pass_context
def lint_command(
    ctx: click.Context,
    path: Path,
    targets: tuple[str, ...],
    compiles: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Check PATH, a bundle or any .onnx, for releases of TensorRT (default: all); exit code 1 if one refuses it."""
    with needs_the_exporter():
        from calipso_export.lint import ERROR, lint_file, named_targets

        asked = named_targets(targets)
        linted = lint_file(path, targets=asked, compiles=compiles)
    errors = sum(finding.severity == ERROR for finding in linted.findings)
    if as_json:
        Console(soft_wrap=True).print_json(data=_document(path, asked, linted, errors))
    else:
        _print(path, asked, linted, errors)
    ctx.exit(1 if errors else 0)


def _document(path: Path, targets: Sequence[str], linted: "Linted", errors: int) -> dict[str, Any]:
    return {
        "path": str(path),
        "targets": list(targets),
        **({} if linted.compiler is None else {"compiler": linted.compiler}),
        "errors": errors,
        "warnings": len(linted.findings) - errors,
        "findings": [dataclasses.asdict(finding) for finding in linted.findings],
    }


def _print(path: Path, targets: Sequence[str], linted: "Linted", errors: int) -> None:
    """One paragraph for each rule, errors first."""
    console, findings = plain_console(), linted.findings

    def rule(finding: "Finding") -> tuple[str, ...]:
        return (finding.severity, finding.rule, finding.fix, *finding.targets)

    for _, group in groupby(sorted(findings, key=rule), key=rule):
        _print_rule(console, list(group))
    console.print(f"{path}: {_count(errors, 'error')}, {_count(len(findings) - errors, 'warning')}", soft_wrap=True)
    console.print(f"checked for {', '.join(targets)}", soft_wrap=True)
    if linted.compiler is not None:
        refused = any(finding.rule.startswith(COMPILER) for finding in findings)
        console.print(f"{'refused' if refused else 'built'} by {linted.compiler}", soft_wrap=True)


def _print_rule(console: Console, found: Sequence["Finding"]) -> None:
    first = found[0]
    where = defaultdict(list)
    for finding in found:
        where[finding.wrong].append(finding.where)
    lines = [f"{_some(places)}: {wrong}" for wrong, places in where.items()]
    more = [f"and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else []
    console.print(f"{first.severity} {first.rule} ({', '.join(first.targets)})", soft_wrap=True)
    for line in (*lines[:_MOST_SHOWN], *more, f"to do: {first.fix}", f"source: {first.source}"):
        console.print(f"    {line}", soft_wrap=True)


def _some(places: Sequence[str]) -> str:
    """The first few of the places that have the same fault, and how many there are."""
    shown = ", ".join(places[:_MOST_SHOWN])
    return shown if len(places) <= _MOST_SHOWN else f"{len(places)} places, such as {shown}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
