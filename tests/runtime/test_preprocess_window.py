"""Very long pictures: only the window that the crop keeps is made, and it is the same window.

Measured with Pillow 13: RGB, grey, 16-bit and float pictures differ by one level in under 0.06 % of
their values, because Pillow keeps the corners of a box in float32. In the other modes under 0.12 %
differ, and the conversion to RGB can make more than a level of it (CMYK 2, YCbCr 3, LAB 5, HSV 7,
almost transparent pixels 34); palettes and bitmaps, which take the nearest pixel, may take the
other one of two that are equally near.
"""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from runtime_samples import MEAN, STD, configs, picture

from calipso_runtime import pictures, preprocess
from calipso_runtime.manifest import Preprocess

MAX_SHARE = 0.002
SIZES = [(7, 900), (900, 7), (1, 333), (333, 1), (19, 2345), (2345, 29), (31, 1000)]


def both(mode: str, monkeypatch: pytest.MonkeyPatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The pixels by way of the whole resized picture, and of the window alone."""
    whole, window = [], []
    for size in SIZES:
        image = picture(mode, *size)
        for config in configs("shortest"):
            with monkeypatch.context() as patch:
                whole.append(pictures.pixels(image, config, name="image").astype(np.int64).ravel())
                patch.setattr(preprocess, "MAX_RESIZED_PIXELS", 0)
                window.append(pictures.pixels(image, config, name="image").astype(np.int64).ravel())
    return np.concatenate(whole), np.concatenate(window)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_window_differs_by_one_level_at_most_and_rarely(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, window = both(mode, monkeypatch)

    difference = np.abs(whole - window)
    assert difference.max() <= 1
    assert (difference > 0).mean() < MAX_SHARE


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK", "P", "1", "PA", "YCbCr", "HSV"])
def test_the_window_differs_rarely_in_every_other_mode(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, window = both(mode, monkeypatch)

    assert (whole != window).mean() < MAX_SHARE


def test_the_window_is_equal_where_the_scale_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Preprocess(size=(32, 32), mean=MEAN, std=STD)
    image = picture("RGB", 8, 1000)
    whole = pictures.pixels(image, config, name="image")
    monkeypatch.setattr(preprocess, "MAX_RESIZED_PIXELS", 0)

    np.testing.assert_array_equal(pictures.pixels(image, config, name="image"), whole)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_line_of_20000_pixels_is_answered_without_its_billion_pixels(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    resize = Image.Image.resize

    def counting(self: Image.Image, size: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", counting)
    config = Preprocess(size=(224, 224), mean=MEAN, std=STD)

    pixels = pictures.pixels(Image.new("RGB", size, (10, 200, 30)), config, name="image")

    assert pixels.shape == (224, 224, 3)
    assert (pixels == (10, 200, 30)).all()
    assert max(made) <= 224 * 224


def test_a_picture_that_shrinks_is_never_cut_to_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "MAX_RESIZED_PIXELS", 0)
    monkeypatch.setattr(preprocess, "_resize_window", lambda *_: pytest.fail("a window was made"))
    config = Preprocess(size=(32, 32), mean=MEAN, std=STD)

    assert pictures.pixels(picture("RGB", 40, 4000), config, name="image").shape == (32, 32, 3)
