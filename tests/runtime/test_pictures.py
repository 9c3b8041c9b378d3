"""Files as they come: every format answers as open_clip does, and every damage is one ImageError."""

import io
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runtime_samples import CONFIG, picture

from calipso_runtime import pictures
from calipso_runtime.errors import BackendUnavailableError, ImageError, InputError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def frames(mode: str) -> list[Image.Image]:
    return [picture("RGB", 50, 40, seed).convert(mode) for seed in (1, 2, 3)]


def animation(kind: str, mode: str = "RGB") -> bytes:
    first, *rest = frames(mode)
    return encoded(first, kind, save_all=True, append_images=rest, duration=100)


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture("RGB", 50, 30), "JPEG", exif=exif)


def palette_with_alphas() -> bytes:
    return encoded(picture("P", 50, 30), "PNG", transparency=bytes(range(256)))


FILES = {
    "jpeg": encoded(picture("RGB", 70, 50), "JPEG"),
    "progressive jpeg": encoded(picture("RGB", 70, 50), "JPEG", progressive=True),
    "grey jpeg": encoded(picture("L", 70, 50), "JPEG"),
    "cmyk jpeg": encoded(picture("CMYK", 70, 50), "JPEG"),
    "jpeg that exif turns": exif_rotated(),
    "png": encoded(picture("RGB", 70, 50), "PNG"),
    "png with alpha": encoded(picture("RGBA", 70, 50), "PNG"),
    "grey png with alpha": encoded(picture("LA", 70, 50), "PNG"),
    "1-bit png": encoded(picture("1", 70, 50), "PNG"),
    "palette png": encoded(picture("P", 70, 50), "PNG"),
    "palette png with one transparent colour": encoded(picture("P", 70, 50), "PNG", transparency=3),
    "palette png with alphas": palette_with_alphas(),
    "gif": encoded(picture("P", 70, 50), "GIF"),
    "animated gif": animation("GIF"),
    "animated palette gif": animation("GIF", "P"),
    "animated webp": animation("WEBP"),
    "animated png": animation("PNG"),
    "webp with alpha": encoded(picture("RGBA", 70, 50), "WEBP"),
    "bmp": encoded(picture("RGB", 70, 50), "BMP"),
    "tiff of two pages": animation("TIFF"),
    "ppm": encoded(picture("RGB", 70, 50), "PPM"),
    "ico": encoded(picture("RGBA", 64, 64), "ICO"),
}


DEEP_GREY = {
    "16-bit png": encoded(picture("I;16", 70, 50), "PNG"),
    "16-bit tiff": encoded(picture("I;16", 70, 50), "TIFF"),
    "32-bit tiff": encoded(picture("I", 70, 50), "TIFF"),
    "float tiff": encoded(picture("F", 70, 50), "TIFF"),
}


@pytest.mark.parametrize("content", DEEP_GREY.values(), ids=DEEP_GREY)
def test_grey_that_would_become_white_or_black_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match="scan is a grey picture of more than 8 bits a pixel"):
        pictures.decode(content, CONFIG, name="scan")


def test_an_opened_picture_of_deep_grey_is_refused_too() -> None:
    with pytest.raises(ImageError, match="more than 8 bits"):
        pictures.decode(picture("I;16", 20, 20), CONFIG, name="scan")


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_answers_as_open_clip_does(open_clip_transform, content: bytes) -> None:
    with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
        warnings.simplefilter("ignore")  # Pillow's, of open_clip's own convert
        expected = open_clip_transform(CONFIG)(image)

    np.testing.assert_array_equal(pictures.decode(content, CONFIG, name="image"), expected, strict=True)


def test_an_animation_is_its_first_frame() -> None:
    first, second = (pictures.decode(frame, CONFIG, name="image") for frame in frames("RGB")[:2])

    np.testing.assert_array_equal(pictures.decode(animation("PNG"), CONFIG, name="image"), first)
    assert (first != second).any()


def test_path_bytes_open_file_pillow_image_and_pixels_answer_the_same(tmp_path: Path) -> None:
    image = picture("RGB", 60, 40)
    path = tmp_path / "picture.png"
    image.save(path)
    forms = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), image, np.asarray(image)]

    answers = [pictures.decode(form, CONFIG, name="image") for form in forms]

    assert all((answer == answers[0]).all() for answer in answers)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pixels_answer_as_the_picture_that_they_come_from(mode: str) -> None:
    image = picture(mode, 60, 40)
    levels = np.asarray(image)
    expected = pictures.decode(image, CONFIG, name="image")

    np.testing.assert_array_equal(pictures.decode(levels, CONFIG, name="image"), expected)
    if levels.ndim == 2:
        np.testing.assert_array_equal(pictures.decode(levels[:, :, None], CONFIG, name="image"), expected)


def test_pixels_in_any_memory_order_answer_the_same() -> None:
    levels = np.asarray(picture("RGB", 60, 40))
    strided = np.ascontiguousarray(levels.transpose(2, 0, 1)).transpose(1, 2, 0)

    np.testing.assert_array_equal(
        pictures.decode(strided, CONFIG, name="image"), pictures.decode(levels, CONFIG, name="image")
    )


def test_what_the_caller_gave_is_left_as_it_was() -> None:
    image = picture("P", 16, 16)
    image.info["transparency"] = bytes(range(256))
    stream = io.BytesIO(FILES["png"])

    pictures.decode(image, CONFIG, name="image")
    pictures.decode(stream, CONFIG, name="image")

    assert image.info["transparency"] == bytes(range(256))
    assert image.mode == "P"
    assert not stream.closed


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp with alpha", "bmp", "ppm"])
def test_a_truncated_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "half.picture"
    path.write_bytes(FILES[kind][: len(FILES[kind]) // 2])

    with pytest.raises(ImageError, match=r"half\.picture"):
        pictures.decode(path, CONFIG, name="image")


def test_any_damage_is_an_image_error_or_still_a_picture() -> None:
    rng = random.Random(0)  # noqa: S311 - damage need not be secret
    refused = 0
    for content in FILES.values():
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(rng.randrange(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                answer = pictures.decode(bytes(damaged), CONFIG, name="image")
            except ImageError:
                refused += 1
            else:
                assert np.isfinite(answer).all()
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"images\[3\] cannot be used as a picture"):
        pictures.decode(content, CONFIG, name="images[3]")


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.jpg cannot be used as a picture: No such file"):
        pictures.decode(tmp_path / "nowhere.jpg", CONFIG, name="image")
    with pytest.raises(ImageError, match=str(tmp_path)):
        pictures.decode(str(tmp_path), CONFIG, name="image")


@pytest.mark.parametrize("pixel_count", [60 * 40 - 1, (60 * 40 - 1) // 2])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_a_decompression_bomb_is_refused_by_name(
    pixel_count: int, action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    picture("RGB", 60, 40).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixel_count)

    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(ImageError, match=r"bomb\.png is too large to be decoded safely"):
            pictures.decode(path, CONFIG, name="image")


def test_a_picture_of_exactly_the_limit_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 50)

    assert pictures.decode(FILES["png"], CONFIG, name="image").shape == (3, 16, 16)


def test_no_limit_is_respected_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)

    assert pictures.decode(FILES["png"], CONFIG, name="image").shape == (3, 16, 16)


@pytest.mark.parametrize("empty", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0), np.uint8), Image.new("RGB", (0, 5))])
def test_a_picture_without_pixels_is_refused(empty: object) -> None:
    with pytest.raises(ImageError, match="image has no pixels"):
        pictures.decode(empty, CONFIG, name="image")


@pytest.mark.parametrize("shape", [(3, 20, 20), (20, 20, 2), (20,), (2, 20, 20, 3)])
def test_pixels_of_another_shape_are_refused_with_what_to_do(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="Put the channels last"):
        pictures.decode(np.zeros(shape, np.uint8), CONFIG, name="image")


def test_a_mode_without_a_way_to_rgb_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="La"):
        pictures.decode(picture("LA", 20, 20).convert("La"), CONFIG, name="image")


def test_pillows_settings_are_left_alone() -> None:
    code = (
        "from PIL import Image, ImageFile; before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)\n"
        "import sys; from calipso_runtime import pictures; from calipso_runtime.manifest import Preprocess\n"
        "config = Preprocess(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)\n"
        "pictures.decode(sys.stdin.buffer.read(), config, name='image')\n"
        "assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)"
    )

    assert subprocess.run([sys.executable, "-c", code], input=FILES["jpeg"], check=False).returncode == 0


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'calipso\[ort\]'"):
        pictures.decode(b"", CONFIG, name="image")
