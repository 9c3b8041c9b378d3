"""Type stubs of one version of TensorRT, generated from its bindings and repaired so that mypy takes them.

The repairs: a parameter named `in` gets an underscore; a parameter without a default that follows one with a default
gets one; `bool` means Python's, which the module's own `bool`, a data type, hides; a default of None widens the type;
what happens though no signature says it (a tuple is taken for Dims, which can be iterated; host memory is a buffer) is
said; and `SupportsInt`, which newer bindings take and no version returns, is `int`, as it is in the older ones.
"""

import ast
import re
from pathlib import Path

from stand_ins.bindings import Bindings

_PARAMETER_IN = re.compile(r"([(,] ?)in: ")
_DEFINITION = re.compile(r"^ *def \w+\(.* = .*$", re.MULTILINE)
_NO_DEFAULT = re.compile(r"(, \w+: [^=\[\],()]+(?:\[[^=]*?\])?)(?=[,)])")
# By name: what stands in its place, and where only in parameters.
_EVERYWHERE = {"bool": "builtins.bool", "typing.SupportsInt": "int", "typing.SupportsFloat": "float"}
_IN_PARAMETERS = {"Dims": "Dims | collections.abc.Sequence[int]"}
# What these classes can do beside what their signatures tell.
_ADDED = {
    "Dims": "def __iter__(self) -> collections.abc.Iterator[int]: ...",
    "IHostMemory": "def __buffer__(self, flags: int, /) -> memoryview: ...",
}


def write(bindings: Bindings, folder: Path) -> None:
    """Write the stubs of these bindings as the package `tensorrt` into a folder, whatever their own package is."""
    package = bindings.family.package
    bindings.python("-m", "pybind11_stubgen", "--ignore-all-errors", "-o", folder, package)
    (folder / package).rename(folder / "tensorrt")
    for path in list((folder / "tensorrt").glob("*.pyi")):
        stub = path.read_text(encoding="utf-8").replace(package, "tensorrt")
        path.unlink()
        path.with_name(path.name.replace(package, "tensorrt")).write_text(repaired(stub), encoding="utf-8")


def repaired(stub: str) -> str:
    """A stub that mypy can read."""
    stub = _DEFINITION.sub(_with_defaults, _PARAMETER_IN.sub(r"\1in_: ", stub))
    tree = ast.fix_missing_locations(_Repair().visit(ast.parse(stub)))
    return "import builtins\nimport collections.abc\n" + ast.unparse(tree)


def _with_defaults(definition: re.Match[str]) -> str:
    head, default, tail = definition.group().partition(" = ")
    return head + default + _NO_DEFAULT.sub(r"\1 = ...", tail)


class _Repair(ast.NodeTransformer):
    def __init__(self, names: dict[str, str] = _EVERYWHERE) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._replaced(node) if isinstance(node.ctx, ast.Load) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._replaced(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.body += ast.parse(_ADDED.get(node.name, "")).body
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        in_parameters = _Repair({**self.names, **_IN_PARAMETERS})
        of_last = node.args.args[len(node.args.args) - len(node.args.defaults) :]
        for parameter in node.args.args:
            if parameter.annotation is not None:
                parameter.annotation = in_parameters.visit(parameter.annotation)
        for parameter, default in zip(of_last, node.args.defaults, strict=True):
            if parameter.annotation and isinstance(default, ast.Constant) and default.value is None:
                parameter.annotation = ast.BinOp(parameter.annotation, ast.BitOr(), ast.Constant(None))
        if node.returns is not None:
            node.returns = self.visit(node.returns)
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        return node

    def _replaced(self, node: ast.expr) -> ast.expr:
        name = ast.unparse(node)
        return ast.parse(self.names[name], mode="eval").body if name in self.names else node
