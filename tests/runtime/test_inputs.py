"""What is refused, and that the message says which value, what was expected and what to do."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runtime_samples import CONFIG, LABELS

import calipso_runtime
from calipso_runtime import Classifier, pictures
from calipso_runtime.errors import ImageError, InputError

PIXELS = np.random.default_rng(3).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
TENSORS = np.stack([pictures.decode(pixels, CONFIG, name="image") for pixels in PIXELS])


@pytest.fixture(scope="module")
def classifier(tiny: Path) -> Classifier:
    return calipso_runtime.load(tiny)


def test_one_picture_gives_one_row_and_many_give_many(classifier: Classifier, photo: Path) -> None:
    one = [photo, str(photo), photo.read_bytes(), PIXELS[0], PIXELS[0][..., 0], TENSORS[0], Image.open(photo)]
    many = [[photo], (photo, PIXELS[0]), PIXELS[:2], TENSORS[:2], list(TENSORS[:1]), PIXELS[:1]]

    assert {classifier.logits(images).shape for images in one} == {(len(LABELS),)}
    assert [classifier.logits(images).shape for images in many] == [
        (count, len(LABELS)) for count in (1, 2, 2, 2, 1, 1)
    ]


def test_pixels_and_preprocessed_tensors_answer_the_same(classifier: Classifier) -> None:
    np.testing.assert_array_equal(classifier.logits(PIXELS), classifier.logits(TENSORS))


def test_a_list_may_mix_all_forms(classifier: Classifier, photo: Path) -> None:
    mixed = classifier.logits([photo, PIXELS[1], TENSORS[1], photo.read_bytes()])

    np.testing.assert_array_equal(mixed[1], mixed[2])
    np.testing.assert_array_equal(mixed[0], mixed[3])


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (TENSORS.astype(np.float64), r"images has dtype float64: expected uint8 or float32; convert it with .astype"),
        (TENSORS.astype(np.float16), r"dtype float16.*\.astype\(numpy\.float32\)"),
        (PIXELS.astype(np.int64), r"dtype int64: expected uint8 or float32; pass pixels as uint8 \[H,W,3\]"),
        (PIXELS > 3, "dtype bool"),
        (np.array(["cat.jpg"]), "dtype <U7"),
        (np.array([None]), "dtype object"),
        (TENSORS[0, 0], r"images is float32 \[16, 16\]: expected a path, bytes"),
        (TENSORS[None], r"images is float32 \[1, 5, 3, 16, 16\]"),
        (PIXELS[None], r"images is uint8 \[1, 5, 20, 30, 3\]"),
        (TENSORS[:, :, :8], r"images\[0\] is float32 \[3, 8, 16\]: this graph takes float32 \[3, 16, 16\]"),
        (TENSORS[:, :1], r"images\[0\] is float32 \[1, 16, 16\]"),
        (np.ascontiguousarray(TENSORS[0].transpose(1, 2, 0)), r"image is float32 \[16, 16, 3\]"),
        (np.ascontiguousarray(PIXELS[0].transpose(2, 0, 1)), r"image is uint8 \[3, 20, 30\].*Put the channels last"),
        (TENSORS[:0], r"images is an empty numpy.ndarray of shape \[0, 3, 16, 16\]: expected at least one"),
        (PIXELS[:0], r"empty numpy.ndarray of shape \[0, 20, 30, 3\]"),
        ([], "images is an empty list: expected at least one picture"),
        ((), "images is an empty tuple"),
        (None, "images is a NoneType: expected a path"),
        (3, "images is a int"),
        ({"a.jpg"}, "images is a set"),
        (iter(["a.jpg"]), r"Use classify_stream for a generator\."),
        ([TENSORS[0], None], r"images\[1\] is a NoneType: expected a path"),
        ([TENSORS[0], TENSORS[:2]], r"images\[1\] is float32 \[2, 3, 16, 16\]"),
        ([TENSORS[0].astype(np.float64)], r"images\[0\] has dtype float64"),
    ],
)
def test_a_wrong_type_dtype_or_shape_is_refused_with_what_to_do(
    classifier: Classifier, images: object, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        classifier.logits(images)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(classifier: Classifier, value: float) -> None:
    tensors = TENSORS.copy()
    tensors[3, 2, 4, 7] = value

    with pytest.raises(InputError, match=rf"images\[3\] holds {value} at channel 2, row 4, column 7 \(1 such values\)"):
        classifier.logits(tensors)


def test_pixels_given_as_floats_are_recognised(classifier: Classifier) -> None:
    with pytest.raises(InputError, match=r"looks like 0\.\.255 pixels: pass uint8 \[H,W,3\]"):
        classifier.logits(np.full((3, 16, 16), 200, np.float32))


@pytest.mark.parametrize(("channel", "shift"), [(0, 0.02), (1, -0.02), (2, 0.02)])
def test_a_value_just_outside_the_range_of_its_channel_is_refused(
    classifier: Classifier, channel: int, shift: float
) -> None:
    edge = (np.float32(shift > 0) + shift - CONFIG.mean[channel]) / CONFIG.std[channel]
    tensor = TENSORS[0].copy()
    tensor[channel, 0, 0] = edge

    low, high = -CONFIG.mean[channel] / CONFIG.std[channel], (1 - CONFIG.mean[channel]) / CONFIG.std[channel]
    told = f"in channel {channel}: normalised pixels lie between {low:.4g} and {high:.4g} there; normalise it"
    with pytest.raises(InputError, match=re.escape(told)):
        classifier.logits(tensor)


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_are_inside_the_range(classifier: Classifier, level: int) -> None:
    white = pictures.decode(np.full((9, 9, 3), level, np.uint8), CONFIG, name="image")

    assert np.isfinite(classifier.logits(white * np.float32(1.000001))).all()


def test_the_failing_picture_of_a_list_is_named(classifier: Classifier, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"lost\.jpg"):
        classifier.logits([photo, tmp_path / "lost.jpg"])
    with pytest.raises(ImageError, match=r"images\[1\]"):
        classifier.logits([photo, b"junk"])
    with pytest.raises(ImageError, match=r"images\[0\] has no pixels"):
        classifier.logits(PIXELS[:, :0])


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_top_and_batch_below_one_are_refused(classifier: Classifier, value: object) -> None:
    with pytest.raises(InputError, match=r"top is .*: expected a whole number of at least 1"):
        classifier.classify(PIXELS, top=value)
    for method in (classifier.classify, classifier.logits, classifier.embed, classifier.probabilities):
        with pytest.raises(InputError, match=r"batch is .*: expected a whole number of at least 1"):
            method(PIXELS, batch=value)
    for names in ({"top": value}, {"batch": value}):
        with pytest.raises(InputError, match="expected a whole number of at least 1"):
            classifier.classify_stream([], **names)


def test_an_input_error_is_a_value_error_as_well(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="empty"):
        classifier.classify([])


def test_the_callers_array_is_not_changed(classifier: Classifier) -> None:
    tensors, pixels = TENSORS.copy(), PIXELS.copy()
    tensors.flags.writeable = pixels.flags.writeable = False

    classifier.logits(tensors)
    classifier.logits(pixels)

    np.testing.assert_array_equal(tensors, TENSORS)
    np.testing.assert_array_equal(pixels, PIXELS)
