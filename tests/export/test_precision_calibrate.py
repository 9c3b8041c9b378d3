"""Calibration: measured once whatever the batches, goes on after an interruption, and refuses useless pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from export_samples import CLASSES, MakeConfig, below, noise, write_shots
from PIL import Image
from precision_samples import graph_of, node

from calipso_export import export
from calipso_export.precision import calibrate
from calipso_export.precision.calibrate import collect, digest, wanted
from calipso_export.precision.ranges import Histogram
from calipso_export.progress import silent
from calipso_runtime.errors import CalibrationError, ShotsError, UsageError

COUNT, WIDTH = 20, 6
PICTURES = np.random.default_rng(0).standard_normal((COUNT, WIDTH)).astype(np.float32)
# One large number, late: the histogram has to grow.
PICTURES[13, 2] = 700
Asked = list[int]


@pytest.fixture(scope="module")
def model() -> ir.Model:
    """Four products; the inputs of the second and third are measured."""
    nodes = [
        node("MatMul", ["x", "w"], "first"),
        node("Relu", ["first"], "active"),
        node("MatMul", ["active", "w"], "second"),
        node("MatMul", ["second", "w"], "third"),
        node("MatMul", ["third", "w"], "y"),
    ]
    return graph_of(nodes, {"w": np.eye(WIDTH, dtype=np.float32)}, shape=["batch", WIDTH])


def measured(
    model: ir.Model, *, keep: Path | None = None, asked: Asked | None = None, stop_at: int = COUNT
) -> dict[str, Histogram]:
    """Counts of all pictures; Ctrl-C where one of them is `stop_at`."""

    def batch_of(indices: Sequence[int]) -> np.ndarray:
        if stop_at in indices:
            raise KeyboardInterrupt
        if asked is not None:
            asked.extend(indices)
        return PICTURES[list(indices)]

    return collect(model, COUNT, batch_of, keep=keep, progress=silent)


def assert_same(first: dict[str, Histogram], second: dict[str, Histogram]) -> None:
    assert list(first) == list(second)
    for name, histogram in first.items():
        assert (histogram.limit, histogram.peak) == (second[name].limit, second[name].peak)
        np.testing.assert_array_equal(histogram.counts, second[name].counts)


def test_the_inputs_of_every_quantisable_product_are_counted(model: ir.Model) -> None:
    found = measured(model)

    assert list(found) == wanted(model.graph) == ["active", "second"]
    assert {histogram.counts.sum() for histogram in found.values()} == {COUNT * WIDTH}
    assert found["active"].peak == 700


def test_batches_give_the_same_as_one_by_one(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    together = measured(model)

    monkeypatch.setattr(calibrate, "_MOST_AT_ONCE", 1)

    assert_same(measured(model), together)


def test_a_batch_is_no_larger_than_memory_allows(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(calibrate, "_BATCH_BYTES", 3 * 2 * WIDTH * 4)

    def batch_of(indices: Sequence[int]) -> np.ndarray:
        sizes.append(len(indices))
        return PICTURES[list(indices)]

    collect(model, COUNT, batch_of, keep=None, progress=silent)

    assert (sizes[0], max(sizes), sum(sizes)) == (1, 3, COUNT)


@pytest.mark.parametrize("stop_at", [0, 1, 5, 13, COUNT - 1])
def test_interrupted_it_goes_on_where_it_stopped(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(calibrate, "_MOST_AT_ONCE", 2)
    whole, before, after = measured(model), [], []
    keep = tmp_path / "deep" / "kept.npz"

    with pytest.raises(KeyboardInterrupt):
        measured(model, keep=keep, asked=before, stop_at=stop_at)
    found = measured(model, keep=keep, asked=after)

    assert_same(found, whole)
    assert before + after == list(range(COUNT))
    assert below(tmp_path) == {"deep", "deep/kept.npz"}


def test_what_is_known_is_not_asked_again(model: ir.Model, tmp_path: Path) -> None:
    asked: Asked = []
    first = measured(model, keep=tmp_path / "kept.npz")

    second = measured(model, keep=tmp_path / "kept.npz", asked=asked)

    assert asked == []
    assert_same(second, first)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"no arrays",
    "a byte changed": lambda content: content[:60] + bytes([content[60] ^ 255]) + content[61:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_started_anew(model: ir.Model, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    asked: Asked = []
    keep = tmp_path / "kept.npz"
    whole = measured(model, keep=keep)
    keep.write_bytes(damage(keep.read_bytes()))

    found = measured(model, keep=keep, asked=asked)

    assert asked == list(range(COUNT))
    assert_same(found, whole)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_activation_that_is_not_finite_is_said_with_its_picture(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(calibrate, "_MOST_AT_ONCE", 1)
    pictures = PICTURES.copy()
    pictures[7, 0] = value

    with pytest.raises(CalibrationError, match=r"calibration pictures 7 to 7 make the activation active NaN"):
        collect(model, COUNT, lambda indices: pictures[list(indices)], keep=None, progress=silent)


def test_counts_belong_to_one_graph_and_one_list_of_pictures(model: ir.Model) -> None:
    other = model.clone()
    other.graph.initializers["w"].const_value = ir.tensor(2 * np.eye(WIDTH, dtype=np.float32))
    contents = [b"first", b"second"]

    digests = {
        digest(model, contents),
        digest(model, contents[::-1]),
        digest(model, contents[:1]),
        digest(other, contents),
    }

    assert len(digests) == 4
    assert digest(model.clone(), list(contents)) in digests


def no_pictures(folder: Path) -> Path:
    folder.mkdir()
    return folder


def unreadable(folder: Path) -> Path:
    write_shots(folder)
    (folder / CLASSES[0] / "0.png").write_bytes(b"no picture")
    return folder


def one(folder: Path) -> Path:
    folder.mkdir()
    noise(0).save(folder / "one.png")
    return folder


def copies(folder: Path) -> Path:
    folder.mkdir()
    for number in range(20):
        noise(0).save(folder / f"{number}.png")
    return folder


def single_colours(folder: Path) -> Path:
    folder.mkdir()
    for level in range(20):
        Image.new("RGB", (40, 40), (level, 10 * level, 255 - level)).save(folder / f"{level}.png")
    return folder


FOLDERS: dict[str, tuple[Callable[[Path], Path], type[Exception], str]] = {
    "lost": (lambda folder: folder, ShotsError, "calib is not a folder of pictures"),
    "empty": (no_pictures, UsageError, "calib"),
    "unreadable": (unreadable, ShotsError, r"1 of 9 pictures cannot be read:\n.*0\.png"),
    "one": (one, CalibrationError, r"the folder calib to calibrate on has 1 pictures, .* --calib-data DIR"),
    "copies": (copies, CalibrationError, r"has 20 pictures, 1 of them different: give at least 8"),
    "single colours": (
        single_colours,
        CalibrationError,
        "only pictures of a single colour: give at least 8 different pictures",
    ),
}


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("make", "kind", "reason"), FOLDERS.values(), ids=FOLDERS)
def test_pictures_that_show_nothing_are_refused_and_leave_nothing(
    *, make_config: MakeConfig, tmp_path: Path, make: Callable[[Path], Path], kind: type[Exception], reason: str
) -> None:
    config = make_config(precision="int8", calib_data=make(tmp_path / "calib"))

    with pytest.raises(kind, match=reason):
        export(config)

    assert below(config.output.parent) == set()


@pytest.mark.slow
@pytest.mark.usefixtures("traced_once")
def test_another_preprocessing_is_measured_anew(make_config: MakeConfig, tmp_path: Path) -> None:
    cache = tmp_path / "features"
    for mean in (0.4, 0.5):
        config = make_config(
            precision="int8", preprocess={"mean": (mean,) * 3}, feature_cache=cache, force=True, overwrite=True
        )
        export(config)

    assert len(list((cache / "calibration").iterdir())) == 2


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_without_pictures_there_is_no_calibration(make_config: MakeConfig, precision: str) -> None:
    off = {"shots": None, "cache": False, "calip": False, "alpha": None, "beta": None, "b2": None, "b3": None}
    config = make_config(**off, precision=precision, opset=20)

    with pytest.raises(CalibrationError, match=f"precision {precision} is calibrated on pictures, and there are no"):
        export(config)

    assert below(config.output.parent) == set()
