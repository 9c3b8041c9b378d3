"""torchvision imports beside any torch build, and nothing is declared where it needs no help."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from calipso_export import torchvision_ops
from calipso_export.torchvision_ops import ensure_torchvision_imports


class FakeLibrary:
    """Counts what would be declared."""

    made: list["FakeLibrary"]

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.schemas: list[str] = []
        FakeLibrary.made.append(self)

    def define(self, schema: str) -> None:
        self.schemas.append(schema)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeLibrary]]:
    """Declarations are kept here, not made: this process has made or needed its own already."""
    FakeLibrary.made = []
    monkeypatch.setattr(torch.library, "Library", FakeLibrary)
    monkeypatch.setattr(torchvision_ops, "_declared", [])
    return FakeLibrary.made


def test_nothing_is_declared_where_the_compiled_operators_load(
    libraries: list[FakeLibrary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_ops, "native_ops_load", lambda: True)

    assert ensure_torchvision_imports() is False
    assert libraries == []


def test_both_schemas_are_declared_where_they_do_not(
    libraries: list[FakeLibrary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_ops, "native_ops_load", lambda: False)

    assert ensure_torchvision_imports() is True
    (library,) = libraries
    assert (library.name, library.kind) == ("torchvision", "FRAGMENT")
    assert [schema.partition("(")[0] for schema in library.schemas] == ["nms", "qnms"]


def test_a_second_call_declares_nothing_more(libraries: list[FakeLibrary], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_ops, "native_ops_load", lambda: False)

    answers = [ensure_torchvision_imports(), ensure_torchvision_imports()]

    assert answers == [True, True]
    assert len(libraries) == 1


def test_without_torchvision_its_operators_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    assert torchvision_ops.native_ops_load() is False


@pytest.mark.slow
def test_torchvision_and_its_transforms_work_in_a_fresh_process() -> None:
    program = (
        "from calipso_export.torchvision_ops import ensure_torchvision_imports as ensure\n"
        "first = ensure()\n"
        "import torchvision.transforms, PIL.Image\n"
        "picture = torchvision.transforms.ToTensor()(PIL.Image.new('RGB', (4, 3)))\n"
        "print(first == ensure(), tuple(picture.shape))\n"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert result.stdout == "True (3, 3, 4)\n", result.stderr
