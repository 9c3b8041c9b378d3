"""What the runtime gives a graph of raw pixels: pictures as decoded, whatever they come as."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calipso_runtime.backends import RESIZE_AS_PILLOW, connect
from calipso_runtime.bundle import Bundle
from calipso_runtime.errors import BackendUnavailableError, BundleSchemaError, ImageError, InputError, UsageError
from calipso_runtime.head.file import refuse_engine
from calipso_runtime.manifest import Manifest, Preprocess
from calipso_runtime.pixel_input import CHANNEL_ORDERS, PixelInput
from calipso_runtime.pixels import Ragged, array
from calipso_runtime.preprocess import resize_and_crop

CONFIG = Preprocess(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def given_to(picture: object, config: Preprocess = CONFIG, **taken: object) -> np.ndarray:
    return array(picture, PixelInput(**taken), config, name="image")


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_comes_as_it_was_decoded(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png(Image.fromarray(RGB)))

    for picture in (RGB, Image.fromarray(RGB), path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(given_to(picture), RGB)


@pytest.mark.parametrize("channels", list(CHANNEL_ORDERS))
def test_files_come_in_the_order_of_the_graph_and_arrays_are_in_it(channels: str) -> None:
    order = list(CHANNEL_ORDERS[channels])

    of_file = given_to(Image.fromarray(RGB), channels=channels)

    np.testing.assert_array_equal(of_file[..., :3], RGB[..., order])
    assert of_file.shape[2] == len(channels)
    assert (of_file[..., 3:] == 255).all()
    np.testing.assert_array_equal(given_to(of_file, channels=channels), of_file)
    np.testing.assert_array_equal(given_to(of_file[..., :3], channels=channels), of_file)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1)])
@pytest.mark.parametrize("channels", ["rgb", "bgra"])
def test_grey_arrays_get_all_channels(shape: tuple[int, ...], channels: str) -> None:
    grey = RGB[..., 0].reshape(shape)

    found = given_to(grey, channels=channels)

    assert found.shape == (20, 30, len(channels))
    assert (found[..., :3] == RGB[..., :1]).all()


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_what_open_clip_resizes_before_it_is_rgb_is_resized_here(mode: str) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    if mode in {"RGBA", "LA"}:
        picture = Image.fromarray(rgba).convert(mode)
    elif mode == "LAB":
        picture = Image.merge("LAB", Image.fromarray(rgba[..., :3]).split())
    else:
        picture = Image.fromarray(rgba[..., :3]).convert(mode)

    np.testing.assert_array_equal(given_to(picture), resize_and_crop(picture, CONFIG))


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_what_is_the_same_before_and_after_a_resize_is_left_to_the_graph(mode: str) -> None:
    picture = Image.fromarray(RGB).convert(mode)

    found = given_to(picture)

    np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))
    resized = resize_and_crop(picture, CONFIG)
    np.testing.assert_array_equal(resize_and_crop(Image.fromarray(found), CONFIG), resized)


@pytest.mark.parametrize("channels", ["rgb", "bgr", "rgba", "bgra"])
def test_transparent_arrays_are_resized_here_as_transparent_pictures_are(channels: str) -> None:
    rgba = np.random.default_rng(2).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    order = list(CHANNEL_ORDERS[channels])

    found = given_to(rgba[..., [*order, 3]], channels=channels)

    np.testing.assert_array_equal(found[..., :3], resize_and_crop(Image.fromarray(rgba), CONFIG)[..., order])


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), InputError, r"uint8 \[3, 20, 30\].*Put the channels last"),
        (np.zeros((20, 30, 2), np.uint8), InputError, "takes raw pixels"),
        (np.zeros((20, 30, 3), np.float32), InputError, "is float32"),
        (np.zeros((2, 20, 30, 3), np.uint8), InputError, "takes raw pixels"),
        (np.zeros((0, 30, 3), np.uint8), ImageError, "has no pixels"),
        (np.zeros((20, 0, 3), np.uint8), ImageError, "has no pixels"),
        (b"", ImageError, "cannot be used as a picture"),
        (b"\xff\xd8\xff\xe0 no picture", ImageError, "cannot be used as a picture"),
        ("nowhere.png", ImageError, "nowhere.png cannot be used"),
    ],
)
def test_what_is_no_picture_is_refused(picture: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        given_to(picture)


def test_a_truncated_jpeg_is_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "JPEG")

    with pytest.raises(ImageError, match="truncated"):
        given_to(stream.getvalue()[:-60])


def test_sixty_thousand_pixels_a_side_are_too_large_to_decode() -> None:
    content = png(Image.new("1", (60000, 20000)))

    with pytest.raises(ImageError, match="too large to be decoded safely"):
        given_to(content)


def test_a_png_of_sixty_thousand_pixels_width_and_few_lines_is_a_picture() -> None:
    assert given_to(png(Image.new("RGB", (60000, 2)))).shape == (2, 60000, 3)


@pytest.mark.parametrize("picture", [np.zeros((1, 100, 3), np.uint8), Image.new("RGB", (100, 1))])
def test_a_picture_of_which_nothing_is_left_is_refused(picture: object) -> None:
    config = Preprocess(size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1), resize_mode="longest")

    with pytest.raises(ImageError, match="nothing is left of it"):
        given_to(picture, config)


def test_a_graph_of_one_size_takes_no_other(tmp_path: Path) -> None:
    np.testing.assert_array_equal(given_to(RGB, size=(20, 30)), RGB)
    path = tmp_path / "other.png"
    path.write_bytes(png(Image.fromarray(RGB)))
    with pytest.raises(InputError, match=r"other\.png is 30 x 20: this graph takes pictures of 20 x 30"):
        given_to(path, size=(30, 20))
    with pytest.raises(InputError, match="export without --pixels-size"):
        given_to(RGB, size=(30, 20))


def test_a_graph_of_one_size_takes_no_picture_that_open_clip_resizes_otherwise() -> None:
    with pytest.raises(InputError, match="mode P"):
        given_to(Image.fromarray(RGB).convert("P"), size=(20, 30))


@settings(max_examples=50, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=12))
def test_answers_to_pictures_of_many_sizes_keep_their_order(shapes: list[tuple[int, int]]) -> None:
    pictures = [np.full((*shape, 3), place, np.uint8) for place, shape in enumerate(shapes)]

    ragged = Ragged.of(pictures)
    answers = ragged.in_order([{"logits": part[:, 0, 0, :1].astype(np.float32)} for _, part in ragged.parts])

    assert answers["logits"][:, 0].tolist() == list(range(len(shapes)))
    assert len(ragged.parts) == len(set(shapes))


@pytest.mark.parametrize(
    "document",
    [
        {"channels": "grb"},
        {"channels": ["rgb"]},
        {"size": [1]},
        {"size": [0, 4]},
        {"size": ["a", "b"]},
        {"size": 5},
        {"resize": "cubic"},
        {"passes": "pillow-3"},
        {"resize": "matmul"},
    ],
)
def test_pixels_that_no_runtime_knows_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(BundleSchemaError, match="its pixels"):
        PixelInput.from_json(document)


def test_what_a_manifest_says_of_pixels_is_read_back() -> None:
    taken = PixelInput(channels="bgra", size=(480, 640), resize="matmul")
    document = {"name": "pixels", **taken.as_json(), "of a later version": 1}

    assert PixelInput.from_json(document) == taken
    assert taken.shape == (480, 640, 4)
    assert PixelInput().shape == (None, None, 3)


def manifest_of_pixels(**taken: object) -> Manifest:
    return Manifest(
        labels=("a",),
        preprocess=CONFIG,
        precision="fp32",
        model={},
        prompts={},
        head={},
        graph={},
        tools={},
        input={"name": "pixels", **PixelInput(**taken).as_json()},
    )


@pytest.mark.parametrize("backend", ["openvino", "tensorrt", "ort-cuda", "ort-tensorrt"])
def test_an_engine_that_resizes_otherwise_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr("calipso_runtime.backends._constructor", lambda _: lambda *_, **__: opened.append(1))
    bundle = Bundle(path=Path("b"), model_path=Path("b/model.onnx"), manifest=manifest_of_pixels(), digest="")

    with pytest.raises(BackendUnavailableError, match=f"{backend} does not resize pictures as Pillow does"):
        connect(bundle, backend=backend, threads=None)

    assert opened == []
    assert backend not in RESIZE_AS_PILLOW


def test_every_engine_takes_constant_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(graph="model.onnx", provider="stand-in")
    monkeypatch.setattr("calipso_runtime.backends._constructor", lambda _: lambda *_, **__: engine)
    manifest = manifest_of_pixels(size=(20, 30), resize="matmul")
    bundle = Bundle(path=Path("b"), model_path=Path("b/model.onnx"), manifest=manifest, digest="")

    assert connect(bundle, backend="openvino", threads=None)[0] is engine


def test_engines_are_not_built_of_a_graph_that_resizes_by_an_operator() -> None:
    with pytest.raises(UsageError, match="--pixels-size HxW"):
        refuse_engine(Path("b"), manifest_of_pixels())
    refuse_engine(Path("b"), manifest_of_pixels(size=(20, 30), resize="matmul"))
