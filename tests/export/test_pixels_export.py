"""Bundles of raw pixels from end to end: exported by the command, and asked without torch."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_samples import CLASSES, noise, write_shots
from PIL import Image

from calipso_export import ExportConfig, export
from calipso_export.debug import debug
from calipso_export.progress import silent
from calipso_runtime import load
from calipso_runtime.bundle import open_bundle
from calipso_runtime.errors import BackendUnavailableError, ImageError, InputError, UsageError
from calipso_runtime.manifest import read_manifest
from calipso_runtime.reference import read_reference, verify_engine

pytestmark = pytest.mark.slow

CAMERA = (40, 50)
MakePixels = Callable[..., ExportConfig]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of the classes, each of another size and mode."""
    folder = write_shots(tmp_path_factory.mktemp("pixels") / "shots")
    for place, mode in enumerate(("L", "P", "RGBA", "CMYK")):
        noise(50 + place, mode=mode, size=(31 + 20 * place, 60)).save(folder / CLASSES[0] / f"{mode}.tif")
    return folder


@pytest.fixture
def make_pixels(tiny_vit: Path, photos: Path, tmp_path: Path) -> MakePixels:
    def make(**changes: object) -> ExportConfig:
        settings = {
            "model": str(tiny_vit),
            "random_init": 0,
            "classes": CLASSES,
            "pixels": True,
            "calip": False,
            "verify_data": photos,
            "output": tmp_path / "out.calipso",
        }
        return ExportConfig(**{**settings, **changes})

    return make


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    parts = [sys.executable, "-m", "calipso_runtime", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(parts, capture_output=True, check=False, text=True, env=environment)


@pytest.fixture(scope="module")
def exported(
    tiny_vit: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """A bundle for pictures of any size, with all heads and outputs, exported by the command."""
    path = tmp_path_factory.mktemp("pixels") / "out.calipso"
    heads = ["--alpha", 1.5, "--beta", 5.5, "--b2", 1.0, "--b3", 0.1]
    outputs = ["--outputs", "logits,embedding,probabilities,tokens"]
    model = ["--model", tiny_vit, "--random-init", 0, "--classes", ",".join(CLASSES)]
    result = command("export", *model, "--pixels", *heads, *outputs, "--shots", photos, "-o", path)
    return path, result


def test_the_command_exports_a_bundle_that_says_what_it_takes(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    path, result = exported
    assert result.returncode == 0, result.stderr

    manifest = json.loads((path / "manifest.json").read_text())

    assert {name: manifest["input"][name] for name in ("name", "channels", "size", "resize", "dtype")} == {
        "name": "pixels",
        "channels": "rgb",
        "size": None,
        "resize": "op",
        "dtype": "uint8",
    }
    assert manifest["graph"]["inputs"] == {"pixels": {"dtype": "uint8", "shape": ["batch", "height", "width", 3]}}
    assert manifest["graph"]["targets"] == []
    parity = json.loads((path / "parity.json").read_text())
    assert parity["status"] == "passed"
    assert parity["pictures"] == {"source": "the shots", "count": 13, "edge_cases": 18}
    assert parity["worst"]["top1_agreement"] == 1.0


def test_every_command_takes_the_bundle(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], tiny_vit: Path, photos: Path
) -> None:
    path = exported[0]

    check = command("check", path, "--backend", "ort")
    assert check.returncode == 0, check.stderr
    answers = command("classify", path, photos, "--json")
    assert answers.returncode == 0, answers.stderr
    assert len(answers.stdout.splitlines()) == 13
    assert "name=pixels" in command("inspect", path).stdout
    verified = command("verify", path, "--model", tiny_vit, "--data", photos)
    assert verified.returncode == 0, verified.stderr
    ship = command("ship", path, "--target", "server", "-o", path.parent / "kit")
    assert (ship.returncode, "--pixels-size HxW" in ship.stderr) == (2, True), ship.stderr
    trtexec = command("build", path, "--print-trtexec")
    assert (trtexec.returncode, "--pixels-size HxW" in trtexec.stderr) == (2, True)
    lint = command("lint", path)
    assert lint.returncode == 1


def test_the_same_picture_gets_the_same_answer_alone_in_a_batch_and_in_a_stream(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], photos: Path
) -> None:
    paths = sorted(map(str, photos.rglob("*.*")))
    with load(exported[0], backend="ort", threads=1) as classifier:
        alone = np.stack([classifier.logits(path) for path in paths])
        together = classifier.logits(paths)
        streamed = [answer for _, answer in classifier.classify_stream([*paths, "nowhere.png"], batch=4)]
        tokens = classifier.run(paths, ("tokens", "logits"))

    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tokens["logits"], alone, rtol=1e-4, atol=1e-4)
    assert [answer[0].label for answer in streamed[:-1]] == [CLASSES[row.argmax()] for row in alone]
    assert isinstance(streamed[-1], ImageError)


def test_bad_input_is_told_and_answers_go_on(exported: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    stream = io.BytesIO()
    noise(1).save(stream, "JPEG")
    with load(exported[0], backend="ort", threads=1) as classifier:
        for bad, error in (
            (np.zeros((5, 5, 2), np.uint8), InputError),
            (np.zeros((5, 0, 3), np.uint8), ImageError),
            (np.zeros((3, 5, 5), np.float32), InputError),
            (stream.getvalue()[:-100], ImageError),
            (3, InputError),
        ):
            with pytest.raises(error):
                classifier.classify(bad)  # type: ignore[arg-type]
        assert classifier.classify(stream.getvalue())[0].label in CLASSES
    with pytest.raises(BackendUnavailableError, match="does not resize pictures as Pillow does"):
        load(exported[0], backend="openvino")


def test_a_bare_graph_is_enough(exported: tuple[Path, "subprocess.CompletedProcess[str]"], photos: Path) -> None:
    path = exported[0]
    picture = str(next(photos.rglob("*.png")))

    with load(path / "model.onnx", backend="ort") as bare, load(path, backend="ort") as whole:
        np.testing.assert_allclose(bare.logits(picture), whole.logits(picture), atol=1e-4)
        assert bare.manifest.pixels == whole.manifest.pixels
    with pytest.raises(BackendUnavailableError, match="does not resize"):
        load(path / "model.onnx", backend="openvino")


def test_layers_of_the_bundle_can_be_compared(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], tiny_vit: Path
) -> None:
    errors = debug(exported[0], data=None, checkpoint=None, model=str(tiny_vit), progress=silent)

    assert len(errors) > 10
    assert max(each.error for each in errors) < 1e-3


@pytest.mark.parametrize("channels", ["rgb", "bgra"])
def test_a_camera_s_pictures_are_prepared_exactly_on_every_engine(
    channels: str, make_pixels: MakePixels, photos: Path
) -> None:
    size = "x".join(map(str, CAMERA))

    manifest, parity = export(make_pixels(pixels_size=size, channel_order=channels))

    path = make_pixels().output
    assert manifest.graph["inputs"]["pixels"]["shape"] == ["batch", *CAMERA, len(channels)]
    assert manifest.graph["targets"]
    assert parity.document["worst"]["relative_logit_error"] < 5e-5
    bundle = open_bundle(path)
    reference = read_reference(bundle)
    assert reference is not None
    assert reference.pixels.shape[1:] == (*CAMERA, len(channels))
    frame = noise(9, size=CAMERA[::-1])
    answers = []
    for backend in ("ort", "openvino"):
        with load(path, backend=backend, threads=1) as classifier:
            answers.append(classifier.logits(frame))
            assert not verify_engine(classifier._head.now.engine, bundle).failures
            with pytest.raises(InputError, match=f"takes pictures of {CAMERA[1]} x {CAMERA[0]} alone"):
                classifier.logits(noise(9, size=(60, 60)))
            with pytest.raises(InputError, match="alone"):
                classifier.logits(str(next(photos.rglob("RGBA.tif"))))
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-4)
    lint = command("lint", path)
    assert (lint.returncode, "0 errors" in lint.stdout) == (0, True), lint.stdout
    trtexec = command("build", path, "--print-trtexec")
    assert f"--minShapes=pixels:1x{CAMERA[0]}x{CAMERA[1]}x{len(channels)}" in trtexec.stdout


@pytest.mark.parametrize("mode", ["longest", "squash"])
def test_other_ways_to_resize_pass_their_gates(mode: str, make_pixels: MakePixels) -> None:
    manifest, parity = export(make_pixels(preprocess={"resize_mode": mode, "fill_color": 114}))

    assert manifest.preprocess.resize_mode == mode
    assert parity.status == "passed"


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-fp16"])
@pytest.mark.parametrize("size", [None, "40x50"])
def test_the_preparation_stays_in_fp32_at_every_precision(
    precision: str, size: str | None, make_pixels: MakePixels, photos: Path
) -> None:
    config = make_pixels(
        precision=precision,
        pixels_size=size,
        opset=20,
        calib_data=photos,
        repair_minutes=0,
        gates={"max_relative_logit_error": 1.0},
        force=True,
    )

    manifest, _ = export(config)

    assert manifest.input["name"] == "pixels"
    graph = onnx.shape_inference.infer_shapes(onnx.load(config.output / "model.onnx"), strict_mode=True)
    half = {
        value.name for value in graph.graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    prepared = [node for node in graph.graph.node if node.name.startswith("pixels/")]
    assert prepared
    assert not any(name in half for node in prepared for name in node.output)


def test_a_head_that_is_an_input_is_taught_with_pixels(make_pixels: MakePixels) -> None:
    config = make_pixels(head_mode="inputs")
    export(config)

    with load(config.output, backend="ort", threads=1, taught=config.output.parent / "taught") as classifier:
        pictures = [np.asarray(noise(seed, size=(20 + seed, 30))) for seed in range(4)]
        classifier.teach("new", pictures)
        assert classifier.labels == (*CLASSES, "new")
        assert classifier.classify(pictures[0])[0].label == "new"
        classifier.save()
    check = command("check", config.output, "--backend", "ort", "--taught", config.output.parent / "taught")
    assert check.returncode == 0, check.stderr


def test_older_bundles_stay_readable(bundle: Path) -> None:
    manifest = read_manifest(bundle / "manifest.json")

    assert (manifest.input_name, manifest.pixels) == ("image", None)
    with load(bundle, backend="ort") as classifier:
        assert classifier.classify(Image.new("RGB", (30, 20)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": False, "pixels_size": "4x4"}, "give --pixels too"),
        ({"pixels": False, "channel_order": "bgr"}, "give --pixels too"),
        ({"pixels_size": "4"}, "expected height x width"),
        ({"pixels_size": "0x4"}, "expected height x width"),
        ({"pixels_size": "4x-4"}, "expected height x width"),
        ({"channel_order": "gbr"}, "expected one of rgb"),
        ({"resize_form": "cubic"}, "expected one of op"),
        ({"resize_form": "matmul"}, "needs their size"),
        ({"input": "points"}, "pixels are pictures"),
        ({"target": "gpu"}, "give --pixels-size HxW"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, object], message: str, make_pixels: MakePixels
) -> None:
    with pytest.raises(UsageError, match=message):
        make_pixels(**changes)
