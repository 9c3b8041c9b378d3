"""Class names from anywhere, and every list that no classifier can be made of."""

import json
from pathlib import Path

import pytest
from export_samples import answer_or_refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calipso_export.classes import check_classes, read_classes
from calipso_runtime.errors import ClassListError, UsageError

EXAMPLES = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Any text that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# A byte order mark at the start of a file is not part of the first name.
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\N{BYTE ORDER MARK}"))
NAMES = st.lists(TEXT.map(str.strip).filter(bool), min_size=2, unique=True)
FILES = {
    "txt": "ant\nbee\n",
    "txt without a last newline": "ant\nbee",
    "crlf": "ant\r\nbee\r\n",
    "bom": "\N{BYTE ORDER MARK}ant\nbee\n",
    "spaces": "  ant \n\tbee\n",
}


def write(path: Path, content: str) -> str:
    path.write_bytes(content.encode())
    return str(path)


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_text_file_has_a_name_a_line(tmp_path: Path, content: str) -> None:
    assert read_classes(write(tmp_path / "names.txt", content)) == ("ant", "bee")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.toml", 'classes = ["ant", "bee"]'),
        ("names.json", '["ant", "bee"]'),
        ("names.json", '{"classes": ["ant", "bee"]}'),
        ("names.json", '\N{BYTE ORDER MARK}["ant", "bee"]'),
        ("names", "ant\nbee"),
    ],
)
def test_a_file_of_another_kind_is_read_by_its_ending(tmp_path: Path, name: str, content: str) -> None:
    assert read_classes(write(tmp_path / name, content)) == ("ant", "bee")


def test_names_may_stand_inline() -> None:
    assert read_classes("ant, bee ,sea horse") == ("ant", "bee", "sea horse")


def test_an_inline_list_may_be_longer_than_a_file_name_can_be() -> None:
    names = tuple(f"class number {index}" for index in range(400))

    assert read_classes(",".join(names)) == names


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "holds no class names"),
        (["", " "], "holds no class names"),
        (["ant"], "holds one class, 'ant'"),
        (["ant", "", "bee", " "], "empty class name at position 2, 4"),
        (["ant", "bee", " ant", "crab", "bee", "bee"], r"duplicated class names: 'ant' \(2 times\), 'bee' \(3 times\)"),
    ],
)
def test_what_no_classifier_can_be_made_of_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(ClassListError, match=reason):
        check_classes(names, source="the list")


@pytest.mark.parametrize("names", [["ant", 3], ["ant", None], [["ant"], ["bee"]], ["ant", "b\ud800"]])
def test_a_name_that_is_no_text_is_refused(names: list[object]) -> None:
    with pytest.raises(ClassListError, match="the list"):
        check_classes(names, source="the list")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("names.txt", "", "holds no class names"),
        ("names.txt", "\n\n", "holds no class names"),
        ("names.txt", "ant\n\nbee\n", "empty class name at position 2"),
        ("names.txt", "ant\nbee\nant\n", r"duplicated class names: 'ant' \(2 times\)"),
        ("names.txt", "ant\n", "holds one class"),
        ("names.json", "[]", "holds no class names"),
        ("names.json", '["ant", 3]', "holds no list of class names"),
        ("names.json", '{"names": ["ant", "bee"]}', "holds no list of class names"),
        ("names.json", '"ant, bee"', "holds no list of class names"),
        ("names.toml", 'classes = "ant, bee"', "holds no list of class names"),
        ("names.toml", 'classes = ["ant", "ant"]', "duplicated"),
    ],
)
def test_a_file_without_classes_is_refused_by_its_path(tmp_path: Path, name: str, content: str, reason: str) -> None:
    with pytest.raises(ClassListError, match=rf"{name} .*{reason}"):
        read_classes(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content"), [("names.json", "[1,"), ("names.toml", "classes = ["), ("names.json", '["ant", "\\ud800"]')]
)
def test_a_file_that_is_not_valid_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} is not valid (JSON|TOML)"):
        read_classes(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["lost.txt", "lost.toml", "lost.json"])
def test_a_missing_file_is_not_taken_for_a_class_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} does not exist"):
        read_classes(str(tmp_path / name))


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("Käse\nWürste\n".encode("utf-16"))

    with pytest.raises(UsageError, match="cannot be read as UTF-8"):
        read_classes(str(tmp_path / "names.txt"))


@EXAMPLES
@given(names=NAMES)
def test_any_list_survives_json(tmp_path: Path, names: list[str]) -> None:
    assert read_classes(write(tmp_path / "names.json", json.dumps(names))) == tuple(names)


@EXAMPLES
@given(names=st.lists(LINE.map(str.strip).filter(bool), min_size=2, unique=True))
def test_any_list_without_line_breaks_survives_a_text_file(tmp_path: Path, names: list[str]) -> None:
    assert read_classes(write(tmp_path / "names.txt", "\n".join(names))) == tuple(names)


@EXAMPLES
@given(content=st.one_of(TEXT, st.recursive(st.text() | st.integers(), st.lists).map(json.dumps)))
@pytest.mark.parametrize("suffix", ["txt", "json", "toml"])
def test_any_file_is_read_or_refused(tmp_path: Path, suffix: str, content: str) -> None:
    path = write(tmp_path / f"names.{suffix}", content)

    names, refusal = answer_or_refusal(read_classes, path)

    assert f"names.{suffix}" in refusal if names is None else len(set(names)) == len(names) >= 2


@EXAMPLES
@given(source=st.text())
def test_any_inline_text_is_read_or_refused(source: str) -> None:
    names, _ = answer_or_refusal(read_classes, source)

    assert names is None or [name.strip() for name in source.split(",")] == list(names)


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5_000])
def test_json_beyond_the_parsers_limits_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=r"names\.json"):
        read_classes(write(tmp_path / "names.json", content))
