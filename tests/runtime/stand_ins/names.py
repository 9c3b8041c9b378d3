"""Holds source code that uses `tensorrt` against the names and parameters of one version of it.

What is checked: every chain of attributes that starts at the module (`trt.BuilderFlag.REFIT`), every call of such a
chain, and every call of a method with keywords whose name some class of TensorRT has (of what class the object is, only
the type checker knows). A name that a version lacks is no finding where the same function, or one around it, asks
`hasattr(trt.BuilderFlag, "FP16")` with the same base; that it is then asked in an `if` around the use, the type
checker sees. `getattr(base, "name", None)` names nothing that could be missing, and is not looked at.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# As describe.py prints it: of each dotted name its overloads, each a list of (name, whether it must be given).
Overload = list[tuple[str, bool]]
Description = Mapping[str, list[Overload] | None]
_MODULE = "tensorrt"
# Code that several modules share takes one of them as a parameter of this name.
_PARAMETER = "trt"


def findings(source: Path, description: Description) -> list[str]:
    """What in a source file does not fit this version: one line each, with its place."""
    checker = _Checker(description)
    checker.visit(ast.parse(source.read_text(encoding="utf-8"), filename=str(source)))
    return [f"{source.name}:{line}: {text}" for line, text in sorted(checker.found)]


def judged_keywords(source: Path, description: Description) -> list[ast.keyword]:
    """The first keyword of every call that was held against TensorRT's signatures."""
    checker = _Checker(description)
    checker.visit(ast.parse(source.read_text(encoding="utf-8"), filename=str(source)))
    return checker.keywords


def misspelt(code: str, keyword: ast.keyword) -> str:
    """The code with another name for one of its keywords."""
    lines = code.splitlines(keepends=True)
    line, place = lines[keyword.lineno - 1], keyword.col_offset
    lines[keyword.lineno - 1] = f"{line[:place]}misspelt_{line[place:]}"
    return "".join(lines)


def asked_names(source: Path) -> set[str]:
    """Last names in `hasattr(..., "name")` and `getattr(..., "name", ...)`."""
    tree = ast.parse(source.read_text(encoding="utf-8"), filename=str(source))
    return {name for function in ("hasattr", "getattr") for _, name in _asked(ast.walk(tree), function)}


@dataclass
class _Checker(ast.NodeVisitor):
    description: Description
    found: set[tuple[int, str]] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)
    guards: list[set[tuple[str, str]]] = field(default_factory=list)
    keywords: list[ast.keyword] = field(default_factory=list)
    methods: dict[str, list[Overload]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for name, overloads in self.description.items():
            owner, _, method = name.rpartition(".")
            if owner and overloads:
                self.methods[method] += overloads

    def visit_Module(self, node: ast.Module) -> None:
        self.aliases = _aliases(node)
        for name in filter(None, self.aliases.values()):
            if name not in self.description:
                self.found.add((1, f"{_MODULE}.{name} is imported, and this version has no such name"))
        self._visit_scope(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_scope(node)

    def _visit_scope(self, node: ast.AST) -> None:
        self.guards.append(set(_asked(_own_nodes(node), "hasattr")))
        self.generic_visit(node)
        self.guards.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        base = self._dotted(node.value)
        if base is not None and self._is_open(base):
            name = f"{base}.{node.attr}".lstrip(".")
            is_guarded = any((ast.unparse(node.value), node.attr) in guard for guard in self.guards)
            if name not in self.description and not is_guarded and not node.attr.startswith("__"):
                self.found.add((node.lineno, f"{_MODULE}.{name} is not in this version, and no hasattr asks for it"))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self._dotted(node.func)
        if name is not None:
            overloads = self.description.get(name) or []
        elif isinstance(node.func, ast.Attribute) and node.keywords:
            overloads = self.methods.get(node.func.attr, [])
        else:
            overloads = []
        if overloads:
            self.keywords += [keyword for keyword in node.keywords[:1] if keyword.arg]
        if overloads and not any(_fits(node, overload) for overload in overloads):
            known = " or ".join(f"({', '.join(one for one, _ in overload)})" for overload in overloads)
            self.found.add((node.lineno, f"{ast.unparse(node)} fits no signature: expected {known}"))
        self.generic_visit(node)

    def _dotted(self, node: ast.expr) -> str | None:
        """The name in the description that an expression stands for, "" being the module itself."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id)
        if isinstance(node, ast.Attribute) and (base := self._dotted(node.value)) is not None and self._is_open(base):
            return f"{base}.{node.attr}".lstrip(".")
        return None

    def _is_open(self, name: str) -> bool:
        """Whether it is the module or a class, whose names are all described."""
        return not name or any(other.startswith(f"{name}.") for other in self.description)


def _fits(call: ast.Call, overload: Overload) -> bool:
    names = [name for name, _ in overload]
    keywords = {keyword.arg for keyword in call.keywords}
    if any(name.startswith("*") for name in names):
        return True
    is_open = None in keywords or any(isinstance(value, ast.Starred) for value in call.args)
    given = set(names[: len(call.args)])
    must = {name for name, is_required in overload if is_required}
    if keywords - {None} - set(names) or keywords & given:
        return False
    return is_open or (len(call.args) <= len(names) and must <= given | keywords)


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Everything in a function or module but what is in the functions inside of it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from _own_nodes(child)


def _asked(nodes: Iterable[ast.AST], function: str) -> Iterator[tuple[str, str]]:
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id=called), args=[base, ast.Constant(value=str(name)), *_]) if (
                called == function
            ):
                yield ast.unparse(base), name


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Local names that stand for the module ("") or for one of its names."""
    found = {_PARAMETER: ""}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found.update({one.asname or one.name: "" for one in names if one.name == _MODULE})
            case ast.ImportFrom(module="tensorrt", names=names):
                found.update({one.asname or one.name: one.name for one in names})
    return found
