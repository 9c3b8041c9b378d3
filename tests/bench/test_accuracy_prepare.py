"""CoOp's folder layout, turned into what the commands read."""

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from calipso_bench.accuracy.prepare import DATASETS, main, prepare
from calipso_export.photos import find_photos
from calipso_export.templates import TEMPLATE_NAMES
from calipso_runtime.errors import UsageError

SUBSETS = ("train", "val", "test")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Caltech101 with two classes, FGVC-Aircraft with two, and ImageNet with three, two of the same name."""
    root = tmp_path / "data"
    write_caltech(root / "caltech-101")
    write_fgvc(root / "fgvc_aircraft")
    write_imagenet(root / "imagenet")
    return root


def write_caltech(folder: Path) -> None:
    split = {
        subset: [
            [f"{name}/{subset}{number}.jpg", label, name]
            for label, name in enumerate(("car_side", "bass"))
            for number in range(4)
        ]
        for subset in SUBSETS
    }
    for path, *_ in itertools.chain.from_iterable(split.values()):
        touch(folder / "101_ObjectCategories" / str(path))
    (folder / "split_zhou_Caltech101.json").write_text(json.dumps(split))


def write_fgvc(folder: Path) -> None:
    for subset in SUBSETS:
        names = ("707-320", "F/A-18", "707-320", "F/A-18")
        touch(folder / f"images_variant_{subset}.txt", "".join(f"{subset}{n} {name}\n" for n, name in enumerate(names)))
        for number in range(len(names)):
            touch(folder / "images" / f"{subset}{number}.jpg")


def write_imagenet(folder: Path) -> None:
    touch(folder / "classnames.txt", "n01 crane bird\nn02 missile\nn03 missile\n")
    for part, number, index in itertools.product(("train", "val"), ("n01", "n02", "n03"), range(2)):
        touch(folder / "images" / part / number / f"{index}.JPEG")


def touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def classes(out: Path) -> list[str]:
    return (out / "classes.txt").read_text().splitlines()


def test_a_split_file_becomes_classes_and_shots(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "caltech101"

    images = prepare("caltech101", data, shots=2, seed=1, out=out)

    assert images == data / "caltech-101" / "101_ObjectCategories"
    assert classes(out) == ["car side", "bass"]
    found = find_photos(out / "shots", classes(out))
    assert [label for _, label in found] == [0, 0, 1, 1]
    assert all(path.resolve().name.startswith("train") and path.exists() for path, _ in found)
    split = json.loads((out / "split.json").read_text())
    assert split["test"][0] == ["car_side/test0.jpg", 0, "car side"]
    assert {subset: len(entries) for subset, entries in split.items()} == {"train": 8, "val": 8, "test": 8}


def test_the_same_seed_draws_the_same_shots(data: Path, tmp_path: Path) -> None:
    def drawn(seed: int, out: str) -> list[str]:
        prepare("caltech101", data, shots=2, seed=seed, out=tmp_path / out)
        return [path.resolve().name for path in sorted((tmp_path / out / "shots").rglob("*.jpg"))]

    assert drawn(1, "a") == drawn(1, "b")
    assert any(drawn(seed, f"c{seed}") != drawn(1, f"d{seed}") for seed in range(2, 6))


def test_the_lists_of_fgvc_aircraft_are_read(data: Path, tmp_path: Path) -> None:
    prepare("fgvc", data, shots=1, seed=1, out=tmp_path / "fgvc")

    assert classes(tmp_path / "fgvc") == ["707-320", "F/A-18"]
    assert json.loads((tmp_path / "fgvc" / "split.json").read_text())["test"][1] == ["test1.jpg", 1, "F/A-18"]
    assert find_photos(tmp_path / "fgvc" / "shots", classes(tmp_path / "fgvc"))


def test_imagenets_validation_is_the_test_set_and_its_names_become_distinct(data: Path, tmp_path: Path) -> None:
    prepare("imagenet", data, shots=2, seed=1, out=tmp_path / "imagenet")

    assert classes(tmp_path / "imagenet") == ["crane bird", "missile", "missile (n03)"]
    split = json.loads((tmp_path / "imagenet" / "split.json").read_text())
    assert split["test"][-1] == ["val/n03/1.JPEG", 2, "missile (n03)"]


def test_without_shots_there_is_no_folder_of_them(data: Path, tmp_path: Path) -> None:
    prepare("caltech101", data, shots=0, seed=1, out=tmp_path / "out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.txt", "split.json"]


def test_too_few_training_pictures_are_named_and_leave_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shots is 5, and there are fewer training pictures of car side, bass"):
        prepare("caltech101", data, shots=5, seed=1, out=tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pets", "eurosat"])
def test_a_data_set_that_is_not_there_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"is not a folder: expected .* in CoOp's layout"):
        prepare(name, data, shots=1, seed=1, out=tmp_path / "out")


def test_a_missing_folder_and_a_broken_line_of_imagenet_are_named(data: Path, tmp_path: Path) -> None:
    touch(data / "imagenet" / "classnames.txt", "n01 crane bird\nn09 dog\n")
    with pytest.raises(UsageError, match=r"n09 is not a folder: expected the pictures of 'dog'"):
        prepare("imagenet", data, shots=1, seed=1, out=tmp_path / "out")
    touch(data / "imagenet" / "classnames.txt", "n01\n")
    with pytest.raises(UsageError, match="has the line 'n01'"):
        prepare("imagenet", data, shots=1, seed=1, out=tmp_path / "out")


def test_an_existing_folder_is_not_touched(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        prepare("caltech101", data, shots=1, seed=1, out=tmp_path)


def test_the_command_says_what_comes_next_and_exits_2_on_bad_usage(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "caltech101"
    arguments = ["caltech101", "--data", str(data), "--shots", "1", "--out", str(out)]

    first, second = (CliRunner().invoke(main, arguments) for _ in range(2))

    assert first.exit_code == 0, first.output
    assert f"--templates caltech101 --shots {out}/shots -o {out}.calipso" in first.output
    assert f"--split {out}/split.json" in first.output
    assert second.exit_code == 2
    assert "error:" in second.output


def test_every_data_set_has_its_template() -> None:
    assert len(DATASETS) == 11
    assert {known.templates for known in DATASETS.values()} <= set(TEMPLATE_NAMES)
