"""Folders of photos: matched with the classes, checked before any long work, every problem listed."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from export_samples import CLASSES, below, noise, write_shots
from PIL import Image

from calipso_export.models import LoadedModel
from calipso_export.photos import Photos, check_photos, check_readable, find_photos, labelled_pictures
from calipso_export.progress import silent
from calipso_export.steps.gather import read_pictures
from calipso_runtime.errors import CalipsoWarning, ShotsError, UsageError

Check = Callable[..., Photos]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shots to be damaged."""
    return write_shots(tmp_path / "shots")


@pytest.fixture
def check(folder: Path, vit: LoadedModel) -> Check:
    """Find and check the photos of the folder."""
    return lambda *, skip_unreadable=False: check_photos(
        find_photos(folder, CLASSES),
        vit.front_end,
        CLASSES,
        skip_unreadable=skip_unreadable,
        progress=silent,
    )


def test_photos_are_sorted_by_class_and_name(folder: Path) -> None:
    found = find_photos(folder, ("crab", "ant", "bee"))

    names = [f"{path.parent.name}/{path.name}" for path, _ in found]
    assert names == [f"{name}/{number}.png" for name in ("crab", "ant", "bee") for number in range(3)]
    assert [label for _, label in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("Sea_Horse", "sea horse"),
        ("sea horse", "Sea_Horse"),
        ("SEA  HORSE", "sea/horse"),
        ("STRASSE", "straße"),
        ("Cafe\u0301", "caf\u00e9"),
    ],
)
def test_a_folder_fits_its_class_whatever_the_case_and_underscores(tmp_path: Path, name: str, of: str) -> None:
    folder = write_shots(tmp_path / "shots", ("ant", name), count=1)

    assert [label for _, label in find_photos(folder, (of, "ant"))] == [0, 1]


def test_hidden_files_and_folders_are_passed_over(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / "ant" / ".DS_Store").write_text("no photo")
    (folder / "readme.txt").write_text("no folder")

    assert len(find_photos(folder, CLASSES)) == 9


def test_what_does_not_fit_is_listed_on_both_sides(folder: Path) -> None:
    with pytest.raises(ShotsError, match=r"do not fit the 3 classes") as error:
        find_photos(folder, ("ant", "wasp", "moth"))

    assert "classes without a folder: wasp, moth; folders without a class: bee, crab" in str(error.value)


def test_names_in_that_message_keep_their_case(tmp_path: Path) -> None:
    folder = write_shots(tmp_path / "shots", ("ant", "Red Admiral"), count=1)

    with pytest.raises(ShotsError, match=r"without a folder: Sea Horse; .* without a class: Red Admiral"):
        find_photos(folder, ("ant", "Sea Horse"))


def test_two_folders_for_one_class_are_refused(folder: Path) -> None:
    (folder / "Ant").mkdir()

    with pytest.raises(ShotsError, match=r"folders for the same class: Ant, ant"):
        find_photos(folder, CLASSES)


def test_classes_that_no_folder_tells_apart_are_refused(folder: Path) -> None:
    with pytest.raises(ShotsError, match="differ only in case"):
        find_photos(folder, (*CLASSES, "Ant"))


def test_a_class_without_photos_is_named(folder: Path) -> None:
    for name in ("ant", "crab"):
        for path in (folder / name).iterdir():
            path.unlink()
    (folder / "ant" / ".hidden.png").write_text("x")

    with pytest.raises(ShotsError, match=rf"no photos in {folder}/ant, {folder}/crab: every class needs"):
        find_photos(folder, CLASSES)


@pytest.mark.parametrize("name", ["lost", "file"])
def test_what_is_no_folder_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(ShotsError, match=f"{name} is not a folder"):
        find_photos(tmp_path / name, CLASSES)


def damage(folder: Path) -> list[Path]:
    """Three files that no decoder reads."""
    broken = [folder / "ant" / "0.png", folder / "bee" / "notes.txt", folder / "crab" / "cut.jpg"]
    broken[0].write_bytes(b"")
    broken[1].write_text("no photo")
    noise(1, size=(400, 400)).save(broken[2])
    broken[2].write_bytes(broken[2].read_bytes()[:5000])
    return broken


def test_every_unreadable_photo_is_listed(folder: Path, check: Check) -> None:
    broken = damage(folder)

    with pytest.raises(ShotsError, match="3 of 11 pictures cannot be read") as error:
        check()

    assert [line.split(" cannot be used")[0].strip() for line in str(error.value).splitlines()[1:4]] == [
        *map(str, broken)
    ]
    assert "--skip-unreadable" in str(error.value)


def test_a_link_that_leads_nowhere_is_an_unreadable_photo(folder: Path, check: Check) -> None:
    (folder / "bee" / "lost.png").symlink_to(folder / "nowhere.png")

    with pytest.raises(ShotsError, match=r"1 of 10 pictures cannot be read:\n  .*lost\.png"):
        check()


def test_unreadable_photos_can_be_skipped_and_are_reported(folder: Path, check: Check) -> None:
    broken = damage(folder)

    photos = check(skip_unreadable=True)

    assert len(photos.photos) == 8
    assert [str(path) in line for path, line in zip(broken, photos.skipped, strict=True)] == [True] * 3


def test_a_class_that_skipping_leaves_empty_is_refused(folder: Path, check: Check) -> None:
    for path in (folder / "bee").iterdir():
        path.write_text("no photo")

    with pytest.raises(ShotsError, match="no readable photo is left of 'bee'"):
        check(skip_unreadable=True)


def test_a_long_list_of_unreadable_photos_is_cut(tmp_path: Path, vit: LoadedModel) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(60)]

    with pytest.raises(ShotsError, match="60 of 60 pictures") as error:
        check_readable(paths, vit.front_end, silent)

    assert "... and 10 more" in str(error.value)


def test_a_decompression_bomb_is_an_unreadable_photo(
    folder: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    with pytest.raises(ShotsError, match="too large to be decoded safely"):
        check()


def test_a_photo_is_known_by_its_content(folder: Path, check: Check) -> None:
    before = [photo.sha256 for photo in check().photos]
    noise(7).save(folder / "bee" / "1.png")

    after = [photo.sha256 for photo in check().photos]

    assert [index for index in range(9) if before[index] != after[index]] == [4]


def test_checking_photos_leaves_the_folder_alone(folder: Path, check: Check) -> None:
    before = below(folder)

    check()

    assert below(folder) == before


def test_pictures_to_verify_on_are_labelled_by_their_folder(tmp_path: Path) -> None:
    folder = write_shots(tmp_path / "pictures", ("BEE", "elsewhere/ant", "other"), count=1)

    found = labelled_pictures(folder, CLASSES)

    assert {path.parent.name: label for path, label in found} == {"BEE": 1, "ant": 0, "other": None}


def test_pictures_in_folders_of_no_class_are_told(tmp_path: Path, vit: LoadedModel) -> None:
    folder = write_shots(tmp_path / "pictures", ("ant", "bee", "crabs"), count=2)

    with pytest.warns(CalipsoWarning, match="2 of 6 pictures count for no accuracy: .*'crabs'"):
        read_pictures(folder, CLASSES, vit.front_end)


def test_pictures_of_no_classes_at_all_need_no_warning(tmp_path: Path, vit: LoadedModel) -> None:
    folder = write_shots(tmp_path / "pictures", ("monday", "tuesday"), count=1)

    assert [picture.label for picture in read_pictures(folder, CLASSES, vit.front_end).pictures] == [None, None]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text_are_refused_before_anything_is_read(folder: Path) -> None:
    (folder / "ant" / "0.png").rename(os.fsdecode(os.fsencode(folder / "ant") + b"/caf\xe9.png"))

    with pytest.raises(ShotsError, match=r"1 of 9 pictures have names that are no UTF-8: .*caf\\udce9"):
        find_photos(folder, CLASSES)
    with pytest.raises(ShotsError, match="1 of 9 pictures have names"):
        labelled_pictures(folder, CLASSES)


def test_a_folder_without_pictures_cannot_be_verified_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures in"):
        labelled_pictures(tmp_path, CLASSES)
    with pytest.raises(ShotsError, match="lost is not a folder of pictures"):
        labelled_pictures(tmp_path / "lost", CLASSES)
