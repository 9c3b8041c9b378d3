"""Point clouds from files to answers: exported by the command, in a process of its own, and asked without torch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from export_samples import CLASSES, noise

from calipso_export import ExportConfig, export
from calipso_export.debug import debug
from calipso_export.fewshot.view_weights import search_view_weights
from calipso_export.photos import Photo
from calipso_export.progress import silent
from calipso_export.rebuild import rebuild
from calipso_export.reference import EagerClassifier
from calipso_runtime import load
from calipso_runtime.bundle import open_bundle
from calipso_runtime.errors import InputError, ShotsError, UsageError
from calipso_runtime.reference import read_reference

# Every one exports, or asks a bundle that was.
pytestmark = pytest.mark.slow

POINTS = 48
MakePoints = Callable[..., ExportConfig]


def write_clouds(folder: Path, *, count: int = 3) -> Path:
    """`folder/<class>/<number>.npy`: a ball, a plate and a stick, each of another number of points."""
    for row, (name, stretch) in enumerate(zip(CLASSES, ((1, 1, 1), (1, 1, 0.1), (0.1, 1, 0.1)), strict=True)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([row, number])
            np.save(folder / name / f"{number}.npy", rng.standard_normal((40 + 10 * number, 3)) * stretch)
    return folder


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clouds(tmp_path_factory.mktemp("clouds") / "shots")


@pytest.fixture
def make_points(tiny_vit: Path, clouds: Path, tmp_path: Path) -> MakePoints:
    def make(**changes: object) -> ExportConfig:
        settings = {
            "model": str(tiny_vit),
            "random_init": 0,
            "classes": CLASSES,
            "templates": "depth-map",
            "input": "points",
            "points": POINTS,
            "shots": clouds,
            "alpha": 1.5,
            "beta": 5.5,
            "calip": False,
            "output": tmp_path / "out.calipso",
        }
        return ExportConfig(**{**settings, **changes})

    return make


def command(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    parts = [sys.executable, "-m", "calipso_runtime", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(parts, capture_output=True, check=False, text=True, env=environment, **options)


@pytest.fixture(scope="module")
def exported(
    tiny_vit: Path, clouds: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """A bundle with both heads and all outputs, exported by the command."""
    path = tmp_path_factory.mktemp("points") / "out.calipso"
    heads = ["--alpha", 1.5, "--beta", 5.5, "--b2", 1.0, "--b3", 0.1]
    views = ["--input", "points", "--points", POINTS, "--views", 6, "--view-weights", "1,1,0.5,1,0,2"]
    outputs = ["--outputs", "logits,embedding,probabilities,tokens"]
    model = ["--model", tiny_vit, "--random-init", 0, "--classes", ",".join(CLASSES), "--templates", "depth-map"]
    result = command("export", *model, *views, *heads, *outputs, "--shots", clouds, "-o", path)
    return path, result


def test_the_command_exports_a_bundle_that_says_what_it_takes(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    path, result = exported
    assert result.returncode == 0, result.stderr

    manifest = json.loads((path / "manifest.json").read_text())

    assert manifest["input"]["name"] == "points"
    assert manifest["input"]["points"] == POINTS
    assert manifest["input"]["views"] == ["front", "left", "back", "right", "top", "bottom"]
    assert manifest["input"]["view_weights"] == [1.0, 1.0, 0.5, 1.0, 0.0, 2.0]
    assert manifest["input"]["weights_chosen"] == {"method": "given"}
    assert manifest["graph"]["inputs"] == {"points": {"dtype": "float32", "shape": ["batch", POINTS, 3]}}
    assert manifest["graph"]["outputs"]["tokens"]["shape"] == ["batch", 5 * 16, 32]
    assert manifest["prompts"]["templates"] == ["point cloud depth map of a {}."]
    assert manifest["head"]["tip_adapter"]["epochs"] is None


def test_every_batch_size_was_verified_on_clouds_and_edge_cases(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    parity = json.loads((exported[0] / "parity.json").read_text())

    assert parity["status"] == "passed"
    assert parity["pictures"] == {"source": "the shots", "count": 9, "edge_cases": 12}
    assert {name.rpartition(" ")[2] for name in parity["by_batch"]} == {"1", "2", "7"}
    assert parity["worst"]["relative_logit_error"] < 5e-5
    assert set(parity["made_anew"]) == {"text", "keys"}


def test_every_command_takes_the_bundle(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], clouds: Path
) -> None:
    path = exported[0]

    lint = command("lint", path)
    assert (lint.returncode, "0 errors" in lint.stdout) == (0, True), lint.stdout
    check = command("check", path, "--backend", "ort")
    assert check.returncode == 0, check.stderr
    answers = command("classify", path, clouds, "--json")
    assert answers.returncode == 0, answers.stderr
    assert len(answers.stdout.splitlines()) == 9
    inspect = command("inspect", path)
    assert "name=points" in inspect.stdout
    bench = command("bench", path)
    assert "measures bundles of pictures alone" in bench.stderr
    ship = command("ship", path, "--target", "server", "-o", path.parent / "kit")
    assert (ship.returncode, "takes pictures alone" in ship.stderr) == (2, True)
    assert not (path.parent / "kit").exists()
    trtexec = command("build", path, "--print-trtexec")
    assert f"--minShapes=points:1x{POINTS}x3" in trtexec.stdout


def test_verify_asks_pytorch_again(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], tiny_vit: Path, clouds: Path
) -> None:
    result = command("verify", exported[0], "--model", tiny_vit, "--data", clouds)

    assert result.returncode == 0, result.stderr
    assert "top-1 on 9 labelled pictures" in result.stdout


def test_a_bare_graph_answers_like_its_bundle_without_torch(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], clouds: Path, tmp_path: Path
) -> None:
    bare = shutil.copy(exported[0] / "model.onnx", tmp_path / "bare.onnx")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import calipso_runtime, json\n"
        "print(json.dumps(calipso_runtime.load(sys.argv[1]).logits(sys.argv[2]).tolist()))"
    )
    cloud = clouds / CLASSES[1] / "2.npy"

    result = subprocess.run(
        [sys.executable, "-c", script, str(bare), str(cloud)], capture_output=True, text=True, check=False
    )

    with load(exported[0]) as classifier:
        np.testing.assert_allclose(json.loads(result.stdout), classifier.logits(cloud), atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_answers_are_those_of_the_eager_formulas(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], tiny_vit: Path, batch: int
) -> None:
    path = exported[0]
    manifest = open_bundle(path).manifest
    assert manifest is not None
    rebuilt = rebuild(path, manifest, checkpoint=None, model=str(tiny_vit), progress=silent)
    given = np.random.default_rng(batch).standard_normal((7, POINTS, 3)).astype(np.float32)

    wanted = EagerClassifier(rebuilt.model, rebuilt.heads, with_tokens=True)(torch.from_numpy(given))

    with load(path) as classifier:
        found = classifier.run(given, classifier.outputs, batch=batch)
    for name, values in found.items():
        np.testing.assert_allclose(values, wanted[name].numpy(), atol=2e-4, err_msg=name)


def test_the_classifier_takes_arrays_and_files_and_refuses_pictures(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], clouds: Path, tmp_path: Path
) -> None:
    path = clouds / CLASSES[0] / "1.npy"
    points = np.load(path).astype(np.float32)
    noise(0).save(tmp_path / "a.png")
    with load(exported[0]) as classifier:
        one = classifier.classify(path, top=1)
        assert classifier.classify(points, top=1) == one
        assert classifier.classify(points[None], top=1) == [one]
        assert classifier.embed([path, points]).shape == (2, 32)
        with pytest.raises(InputError, match="this bundle takes point clouds"):
            classifier.classify(noise(0))
        with pytest.raises(InputError, match=r"clouds\[1\] holds nan"):
            classifier.classify([points, np.full((3, 3), np.nan, np.float32)])
    result = command("classify", exported[0], tmp_path / "a.png", path)
    assert result.returncode == 1
    assert "a.png cannot be used as a point cloud" in result.stderr
    assert str(path) in result.stdout


def test_the_reference_carries_the_clouds(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], clouds: Path
) -> None:
    reference = read_reference(open_bundle(exported[0]))

    assert reference is not None
    assert reference.pixels.shape == (21, POINTS, 3)
    first = np.load(clouds / CLASSES[0] / "0.npy").astype(np.float32)
    np.testing.assert_array_equal(reference.pixels[0], first[np.arange(POINTS) * 40 // POINTS])


def test_a_bundle_of_pictures_refuses_clouds(bundle: Path, clouds: Path) -> None:
    path = clouds / CLASSES[0] / "0.npy"

    result = command("classify", bundle, path)

    assert result.returncode == 1
    assert "0.npy cannot be used as a picture" in result.stderr


@pytest.mark.slow
def test_half_precision_keeps_the_projection_in_fp32(make_points: MakePoints) -> None:
    config = make_points(precision="fp16", gates={"max_relative_logit_error": 1.0, "min_embedding_cosine": 0.9})

    manifest, parity = export(config)

    assert parity.status == "passed"
    kept = {row["node"] for row in manifest.graph["precision"]["kept_in_fp32"]}
    assert not any(node.startswith(("projection", "views")) for node in kept)
    rows = debug(config.output, data=None, checkpoint=None, model=config.model, progress=silent)
    own = {row.kind for row in rows if row.node.startswith(("projection", "views"))}
    tower = {row.kind for row in rows if row.node.startswith("tower")}
    assert own == {"float"}
    assert "float16" in tower


def test_weights_of_views_are_searched_on_the_shots(make_points: MakePoints) -> None:
    manifest, parity = export(make_points(view_weights="search"))

    chosen = manifest.input["weights_chosen"]
    assert parity.status == "passed"
    assert chosen["clouds"] == 9
    assert chosen["accuracy_chosen"] >= chosen["accuracy_equal"]
    assert len(manifest.input["view_weights"]) == 6


def test_the_search_drops_a_view_that_misleads() -> None:
    text = torch.eye(2, 4)
    photos = tuple(Photo(path=Path("none"), label=index % 2, sha256=f"{index:064x}") for index in range(6))
    right, wrong = text[[0, 1] * 3], text[[1, 0] * 3]
    # The second view says the opposite of the truth, and louder than the first by its cosine.
    features = torch.nn.functional.normalize(torch.stack([right + 0.9 * torch.eye(4)[[2] * 6], wrong], dim=1), dim=-1)

    weights, record = search_view_weights(features, photos, text, with_cache=False)

    assert weights[0] > weights[1]
    assert (record["accuracy_equal"], record["accuracy_chosen"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": "voxels"}, "input is 'voxels': expected image or points"),
        ({"views": 7}, "expected 6 or 10 views"),
        ({"points": 0}, "at least 1 point"),
        ({"view_weights": "1,2"}, "expected equal, search, or 6 numbers"),
        ({"view_weights": "0,0,0,0,0,0"}, "not all 0"),
        ({"view_weights": "1,1,1,1,1,nan"}, "numbers of at least 0"),
        ({"view_weights": "loud"}, "expected equal, search, or"),
        ({"io_dtype": "fp16"}, "coordinates of points need fp32"),
        ({"view_weights": "search", "shots": None, "alpha": None, "beta": None}, "no shots to search on"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make_points: MakePoints, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make_points(**changes)


def test_shots_that_are_no_clouds_are_all_named(make_points: MakePoints, tmp_path: Path) -> None:
    folder = write_clouds(tmp_path / "shots")
    noise(0).save(folder / CLASSES[0] / "a.png")
    np.save(folder / CLASSES[2] / "b.npy", np.zeros((4, 2)))

    with pytest.raises(ShotsError, match=r"2 of 11 (?s:.*)a\.png(?s:.*)b\.npy has shape \[4, 2\]"):
        export(make_points(shots=folder))
    assert not (tmp_path / "out.calipso").exists()
