"""Exports whose head is an input: they answer as baked ones do, in every precision, and can be taught."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from export_samples import CLASSES, MakeConfig, below, noise, unit_vectors
from precision_samples import LOOSE, OPSET

from calipso_export import ExportConfig, export
from calipso_export.heads.inputs import InputHead
from calipso_export.progress import silent
from calipso_export.reverify import reverify
from calipso_runtime import Classifier, load
from calipso_runtime.bundle import HEAD_FILE, open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.errors import OutputPathError, UsageError
from calipso_runtime.head.classes import INPUTS, new_head
from calipso_runtime.head.file import read_head
from calipso_runtime.manifest import read_manifest
from calipso_runtime.reference import verify_engine

TAUGHT = 5
# With these alpha and beta are searched; the photos are of noise, so what is found is anything.
SEARCHED = {"alpha": None, "beta": None}


def inputs_config(make_config: MakeConfig, output: Path, **changes: Any) -> ExportConfig:
    values = {
        "head_mode": "inputs",
        "b2": None,
        "b3": None,
        "outputs": ("logits", "embedding"),
        "epochs": 0,
        "output": output,
    }
    return make_config(**{**values, **changes})


@pytest.fixture(scope="module")
def exported(tiny_vit: Path, shots: Path, feature_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nobody changes."""
    output = tmp_path_factory.mktemp("inputs") / "tiny.calipso"
    export(
        ExportConfig(
            model=str(tiny_vit),
            random_init=0,
            classes=CLASSES,
            templates="photo",
            shots=shots,
            feature_cache=feature_cache,
            epochs=0,
            head_mode="inputs",
            output=output,
            alpha=1.5,
            beta=5.5,
        )
    )
    return output


@pytest.fixture
def own(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "own.calipso"))


@pytest.fixture
def pictures() -> list[Any]:
    return [noise(900 + number) for number in range(6)]


@pytest.mark.slow
def test_a_head_that_is_an_input_answers_as_a_baked_one(
    exported: Path, make_config: MakeConfig, tmp_path: Path, pictures: list[Any]
) -> None:
    config = inputs_config(make_config, tmp_path / "baked.calipso", head_mode="baked", calip=False)
    export(config)

    with load(exported, backend="ort") as inputs, load(config.output, backend="ort") as baked:
        difference = np.abs(inputs.logits(pictures) - baked.logits(pictures)).max()
        assert difference < 1e-5 * np.abs(baked.logits(pictures)).max()


@pytest.mark.slow
def test_the_graph_takes_any_number_of_classes_and_keys(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    sizes = {
        value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }

    assert sizes["text"] == ["classes", 32]
    assert sizes["keys"] == ["classes", "shots", 32]
    assert sizes["offset"] == ["classes", "shots"]
    assert sizes["logits"] == ["batch", "classes"]
    # An initializer of an input's name would be a constant to TensorRT and OpenVINO.
    assert not {value.name for value in model.graph.initializer} & set(INPUTS)


@pytest.mark.slow
def test_the_bundle_carries_its_head_and_binds_it_to_the_graph(exported: Path) -> None:
    manifest = read_manifest(exported / "manifest.json")

    head = read_head(exported / "model.onnx", manifest)

    assert manifest.head["kind"] == "inputs"
    assert manifest.head["sha256"] == manifest.files[HEAD_FILE]["sha256"]
    assert (head.labels, head.counts.tolist(), head.alpha, head.beta) == (CLASSES, [3, 3, 3], 1.5, 5.5)


@pytest.mark.slow
def test_two_exports_are_the_same_bytes(exported: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    again = inputs_config(make_config, tmp_path / "again.calipso")
    export(again)

    for name in ("model.onnx", "model.ort.onnx", HEAD_FILE):
        assert (again.output / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_what_was_exported_is_verified_again(exported: Path, tiny_vit: Path, backend: str) -> None:
    pytest.importorskip("openvino")
    parity = reverify(exported, data=None, checkpoint=None, model=str(tiny_vit), backend=backend, progress=silent)

    assert not parity.failures


@pytest.mark.slow
def test_check_needs_no_torch_for_it(exported: Path) -> None:
    with load(exported, backend="ort") as classifier:
        assert not verify_engine(classifier._head.now.engine, open_bundle(exported)).failures


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*failed its parity gate", "ignore:.*8-bit weights")
@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-weights"])
def test_every_precision_keeps_the_head_in_fp32(
    make_config: MakeConfig, tmp_path: Path, pictures: list[Any], precision: str
) -> None:
    # Of random weights and three classes int8 leaves little: what is asked here is whether the head is left alone.
    low = {
        "precision": precision,
        "opset": OPSET,
        "gates": LOOSE,
        "io_dtype": "fp16",
        "repair_minutes": 0,
        "force": True,
    }
    config = inputs_config(make_config, tmp_path / "low.calipso", **low)

    manifest, _ = export(config)

    assert {name: manifest.graph["inputs"][name]["dtype"] for name in ("image", *INPUTS)} == {
        "image": "float16",
        **dict.fromkeys(INPUTS, "float32"),
    }
    with load(config.output, backend="ort") as classifier:
        classifier.teach("dog", pictures)
        classifier.save()
        assert classifier.classify(pictures[0]).label == "dog"


@pytest.mark.slow
def test_without_photos_classes_stand_by_their_texts_and_can_be_taught(
    make_config: MakeConfig, tmp_path: Path, pictures: list[Any]
) -> None:
    config = inputs_config(make_config, tmp_path / "texts.calipso", shots=None, **SEARCHED)
    manifest, _ = export(config)
    assert manifest.head["tip_adapter"]["used"] is False

    with load(config.output, backend="ort") as classifier:
        before = classifier.logits(pictures)
        classifier.teach("dog", pictures[:5])
        classifier.save()
        after = classifier.logits(pictures)

    assert np.abs(after[:, : len(CLASSES)] - before).max() < 1e-5 * np.abs(before).max()
    assert (after[:5].argmax(axis=1) == len(CLASSES)).all()


@pytest.mark.slow
def test_teaching_gives_the_answers_of_exporting_anew(
    own: Path, make_config: MakeConfig, tmp_path: Path, shots: Path, pictures: list[Any]
) -> None:
    """Both in full: another export with the class and its photos, alpha and beta searched there on the same."""
    more = Path(shutil.copytree(shots, tmp_path / "more"))
    (more / "dog").mkdir()
    for number in range(TAUGHT):
        noise(500 + number).save(more / "dog" / f"{number}.png")
    anew = inputs_config(
        make_config, tmp_path / "anew.calipso", classes=(*CLASSES, "dog"), shots=more, force=True, **SEARCHED
    )
    manifest, _ = export(anew)
    text = read_head(anew.output / "model.onnx", manifest).text[-1]
    found = manifest.head["tip_adapter"]

    with load(own, backend="ort") as taught, load(anew.output, backend="ort") as fresh:
        calibration = taught.teach("dog", sorted((more / "dog").iterdir()), text=text)
        taught.save()
        assert calibration is not None
        assert (calibration.alpha, calibration.beta) == (found["alpha"], found["beta"])
        assert taught.labels == fresh.labels
        _same(taught, fresh, pictures)
    with load(own, backend="ort") as again, load(anew.output, backend="ort") as fresh:
        _same(again, fresh, pictures)


def test_the_published_form_is_what_the_module_computes() -> None:
    rng = np.random.default_rng(0)
    owners = np.array([0, 0, 0, 1, 2, 2])
    head = new_head(
        ("a", "b", "c"),
        unit_vectors(rng, 3, 8),
        unit_vectors(rng, 6, 8),
        owners,
        weights={"alpha": 2.0, "beta": 7.0},
        scale=100.0,
        bias=-10.0,
    )
    embedding = unit_vectors(rng, 4, 8)
    given = {name: torch.from_numpy(values) for name, values in head.arrays().items()}

    found = InputHead(-10.0)(torch.from_numpy(embedding), given["text"], given["keys"], given["offset"]).numpy()

    assert np.abs(found - head.logits(embedding)).max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"b2": 1.0, "b3": 0.1}, "CALIP does not go with head_mode inputs"),
        ({"outputs": ("logits",)}, "with head_mode inputs `embedding` is one"),
        ({"head_mode": "outputs"}, "expected one of baked, inputs, open, embed"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        inputs_config(make_config, tmp_path / "never", **changes)


def test_calip_asked_for_by_name_is_refused_and_writes_nothing(tiny_vit: Path, tmp_path: Path) -> None:
    arguments = ["export", "--model", str(tiny_vit), "--random-init", "0", "--classes", "a,b"]

    result = CliRunner().invoke(
        calipso, [*arguments, "--calip", "--head-mode", "inputs", "-o", str(tmp_path / "out.calipso")]
    )

    assert result.exit_code == 2
    assert "CALIP does not go with head_mode inputs" in result.output
    assert not (tmp_path / "out.calipso").exists()


@pytest.mark.slow
def test_an_export_does_not_replace_a_bundle_that_was_taught(
    own: Path, make_config: MakeConfig, pictures: list[Any]
) -> None:
    with load(own, backend="ort") as classifier:
        classifier.teach("dog", pictures)
        classifier.save()
    before = below(own)

    with pytest.raises(OutputPathError, match="holds taught/, which nothing else has"):
        export(inputs_config(make_config, own, overwrite=True))

    assert below(own) == before


@pytest.mark.slow
def test_a_key_of_no_augmented_view_is_the_photo_as_it_is(exported: Path, shots: Path) -> None:
    head = read_head(exported / "model.onnx", read_manifest(exported / "manifest.json"))

    with load(exported, backend="ort") as classifier:
        features = classifier.embed([str(shots / name / f"{number}.png") for name in CLASSES for number in range(3)])

    assert np.abs(head.keys - features).max() < 1e-5


@pytest.mark.slow
def test_debug_compares_the_layers_of_such_a_bundle(exported: Path, tiny_vit: Path) -> None:
    from calipso_export.debug import debug

    errors = debug(exported, data=None, checkpoint=None, model=str(tiny_vit), progress=silent)

    assert max(each.error for each in errors) < 1e-4


def _same(first: Classifier, second: Classifier, pictures: list[Any]) -> None:
    expected = second.logits(pictures)
    assert np.abs(first.logits(pictures) - expected).max() < 1e-5 * np.abs(expected).max()
