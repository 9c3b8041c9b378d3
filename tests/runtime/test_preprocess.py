"""The uint8 levels and the float32 values are open_clip's: every mode, size and resize."""

import itertools
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from runtime_samples import FILLS, MEAN, MODES, SIZES, STD, configs, picture

from calipso_runtime import pictures, preprocess
from calipso_runtime.errors import ImageError
from calipso_runtime.manifest import Preprocess

PROJECT = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("CALIPSO_REAL_DATA", PROJECT.parent / "shared" / "data" / "caltech101"))


def ours(image: object, config: Preprocess) -> npt.NDArray[np.float32]:
    return pictures.decode(image, config, name="image")


@pytest.mark.parametrize("resize_mode", FILLS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_resize_is_bit_equal_to_open_clip(open_clip_transform, mode: str, resize_mode: str) -> None:
    for config, size in itertools.product(configs(resize_mode), SIZES):
        image = picture(mode, *size)

        assert image.mode == mode
        np.testing.assert_array_equal(ours(image, config), open_clip_transform(config)(image), strict=True)


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    mode=st.sampled_from(MODES),
    config=st.sampled_from([config for resize_mode in FILLS for config in configs(resize_mode)]),
)
def test_any_size_and_mode_answers_or_fails_exactly_as_open_clip_does(
    open_clip_transform, width: int, height: int, mode: str, config: Preprocess
) -> None:
    image = picture(mode, width, height, seed=width * height)
    try:
        expected = open_clip_transform(config)(image)
    except ValueError:
        with pytest.raises(ImageError):
            ours(image, config)
        return

    np.testing.assert_array_equal(ours(image, config), expected, strict=True)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 101, (224, 226)), (101, 100, (226, 224)), (375, 500, (224, 298)), (1, 3, (224, 672))],
)
def test_the_long_side_is_cut_off_and_not_rounded(height: int, width: int, expected: tuple[int, int]) -> None:
    config = Preprocess(size=(224, 224), mean=MEAN, std=STD)

    assert preprocess.resized_size(height, width, config) == expected


def test_bilinear_is_ignored_by_a_shortest_resize_to_a_rectangle_as_open_clip_ignores_it() -> None:
    bicubic, bilinear = (
        Preprocess(size=(24, 40), mean=MEAN, std=STD, interpolation=name) for name in ("bicubic", "bilinear")
    )

    np.testing.assert_array_equal(ours(picture("RGB", 70, 50), bilinear), ours(picture("RGB", 70, 50), bicubic))


def test_bilinear_changes_a_shortest_resize_to_a_square() -> None:
    bicubic, bilinear = (
        Preprocess(size=(32, 32), mean=MEAN, std=STD, interpolation=name) for name in ("bicubic", "bilinear")
    )

    assert (ours(picture("RGB", 70, 50), bilinear) != ours(picture("RGB", 70, 50), bicubic)).any()


def test_padding_has_the_fill_colour_only_when_the_longest_side_is_kept() -> None:
    config = Preprocess(size=(32, 32), mean=MEAN, std=STD, resize_mode="longest", fill_color=127)

    levels = pictures.pixels(Image.new("RGB", (64, 32), (255, 0, 0)), config, name="image")

    assert levels[0, 0].tolist() == [127, 127, 127]
    assert levels[16, 16].tolist() == [255, 0, 0]


@pytest.mark.parametrize("level", range(0, 256, 5))
def test_bounds_are_what_black_and_white_become(level: int) -> None:
    config = Preprocess(size=(4, 4), mean=MEAN, std=STD)
    lowest, highest = preprocess.bounds(config)

    planes = preprocess.normalise(np.full((4, 4, 3), level, np.uint8), config)

    assert (planes >= lowest).all()
    assert (planes <= highest).all()
    assert (planes == lowest).all() == (level == 0)
    assert (planes == highest).all() == (level == 255)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real photographs at {REAL_DATA} (set CALIPSO_REAL_DATA)")
@pytest.mark.parametrize(("resize_mode", "every"), [("shortest", 1), ("longest", 10), ("squash", 10)])
def test_real_photographs_are_bit_equal_to_open_clip(open_clip_transform, resize_mode: str, every: int) -> None:
    config = Preprocess(size=(224, 224), mean=MEAN, std=STD, resize_mode=resize_mode, fill_color=FILLS[resize_mode])
    photos = sorted(REAL_DATA.glob("images/*/*.jpg"))
    transform = open_clip_transform(config)

    assert len(photos) >= 600
    for photo in photos[::every]:
        with Image.open(photo) as image:
            assert np.array_equal(ours(photo, config), transform(image)), photo
