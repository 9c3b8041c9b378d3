"""The pictures that a benchmark asks about."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runtime_samples import CONFIG

from calipso_bench.pictures import STRIDE, Pictures, all_batches, batches, gather, made_up
from calipso_runtime.errors import ImageError, UsageError


def size(picture: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture)).size


def test_made_up_pictures_are_the_same_bytes_for_the_same_seed() -> None:
    assert made_up(2, seed=3) == made_up(2, seed=3)
    assert made_up(2, seed=3) != made_up(2, seed=4)


def test_every_fourth_made_up_picture_is_large_and_all_compress_like_photos() -> None:
    made = made_up(4, seed=0)

    assert [size(picture) for picture in made] == [(640, 427)] * 3 + [(1920, 1280)]
    assert all(len(picture) < 0.25 * 3 * np.prod(size(picture)) for picture in made)


def test_all_batches_of_a_size_have_the_same_mix(pictures: Pictures) -> None:
    asked = batches(pictures, 2, most=2)

    assert [batch.places for batch in asked] == [(0, 1), (4, 5)]
    assert len({tuple(size(picture) for picture in batch.encoded) for batch in asked}) == 1
    assert asked[1].images.flags["C_CONTIGUOUS"]
    assert np.array_equal(asked[1].images, pictures.images[4:6])


def test_a_batch_larger_than_the_pictures_begins_again(pictures: Pictures) -> None:
    (batch,) = batches(pictures, 10, most=1)

    assert batch.places == (0, 1, 2, 3, 4, 5, 6, 7, 0, 1)


def test_verification_asks_about_every_picture(pictures: Pictures) -> None:
    asked = {place for batch in all_batches(pictures, 3) for place in batch.places}

    assert asked == set(range(len(pictures.encoded)))
    assert len(pictures.encoded) % STRIDE == 0


def test_a_folder_with_few_pictures_is_gone_through_again(tmp_path: Path) -> None:
    for place, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{place}.png")

    found = gather(tmp_path, 4, CONFIG, seed=0)

    assert found.encoded[3] == found.encoded[0]
    assert found.source == f"3 of 3 pictures of the folder {tmp_path.name}"
    assert found.images.shape == (4, 3, 16, 16)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures in"):
        gather(tmp_path, 4, CONFIG, seed=0)


def test_a_damaged_picture_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")

    with pytest.raises(ImageError, match="cannot be used as a picture"):
        gather(tmp_path, 4, CONFIG, seed=0)
