"""Which pictures are of which class: out of folders, or out of a CoOp split file."""

import json
from pathlib import Path
from typing import Any

import pytest

from calipso_bench.accuracy.labelled import LabelledData, read_labelled
from calipso_runtime.errors import UsageError

LABELS = ("ant", "Stop Sign", "crab")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ant/1.jpg", "stop_sign/2.png", "stop_sign/more/3.JPG", "stop_sign/.hidden.jpg", "crab/notes.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def write_split(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def read(folder: Path, split: Path | None = None, subset: str = "test", labels: Any = LABELS) -> LabelledData:
    return read_labelled(folder, labels, split=split, subset=subset)


def test_folders_are_matched_with_the_labels_without_regard_to_case_and_underscores(folder: Path) -> None:
    found = read(folder)

    assert [(each.name, each.label) for each in found.pictures] == [
        ("ant/1.jpg", 0),
        ("stop_sign/2.png", 1),
        ("stop_sign/more/3.JPG", 1),
    ]
    assert found.source == {"folder": "photos", "split": None, "subset": None, "split_sha256": None}


def test_a_split_file_names_pictures_and_classes(folder: Path, tmp_path: Path) -> None:
    entries = [["crab/not-there.jpg", 2, "CRAB"], ["ant/1.jpg", 0, "ant"]]
    split = write_split(tmp_path / "split_zhou_X.json", {"train": [], "test": entries})

    found = read(folder, split)

    assert [(each.path, each.label) for each in found.pictures] == [
        (folder / "crab/not-there.jpg", 2),
        (folder / "ant/1.jpg", 0),
    ]
    assert found.source["split"] == "split_zhou_X.json"
    assert len(found.source["split_sha256"]) == 64


def test_the_numbers_of_a_split_file_are_not_those_of_the_bundle(folder: Path, tmp_path: Path) -> None:
    split = write_split(tmp_path / "split.json", {"test": [["ant/1.jpg", 77, "crab"]]})

    assert read(folder, split).pictures[0].label == LABELS.index("crab")


def test_classes_that_the_bundle_lacks_are_listed(folder: Path, tmp_path: Path) -> None:
    split = write_split(tmp_path / "split.json", {"test": [[f"{n}.jpg", n, f"class {n:02}"] for n in range(25)]})

    with pytest.raises(UsageError) as caught:
        read(folder, split)

    assert "no class for 25 of the classes" in str(caught.value)
    assert "'class 00', 'class 01'" in str(caught.value)
    assert "and 5 more. It has 3 classes" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"train": [], "val": []}, "has no list 'test': it has train, val"),
        ([], "has no list 'test': it has none"),
        ({"test": []}, "no pictures in its list 'test'"),
        ({"test": [["a.jpg", 0]]}, r"test\[0\] is \['a.jpg', 0\]: expected \[path, label, class name\]"),
        ({"test": [["a.jpg", 0, "ant"], [1, 2, 3]]}, r"test\[1\] is"),
    ],
)
def test_a_split_file_of_another_form_is_refused(folder: Path, tmp_path: Path, document: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(folder, write_split(tmp_path / "split.json", document))


def test_a_split_file_that_is_no_json_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text("{")

    with pytest.raises(UsageError, match="not valid JSON"):
        read(folder, tmp_path / "split.json")


def test_pictures_without_a_class_folder_are_refused(folder: Path) -> None:
    (folder / "loose.jpg").touch()

    with pytest.raises(UsageError, match=r"pictures without a class, loose\.jpg: expected .*/<class>/"):
        read(folder)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures"):
        read(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        read(tmp_path / "nowhere")


def test_labels_that_cannot_be_told_apart_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="differ only in case"):
        read(folder, labels=("ant", "stop sign", "Stop_Sign"))
