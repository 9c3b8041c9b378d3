"""Bundles that take any labels, exported: they answer as open_clip does, in every precision, and are checked."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from export_samples import CLASSES, noise, write_model
from precision_samples import LOOSE, OPSET
from torch.nn import functional

from calipso_export import ExportConfig, export
from calipso_export.models import LoadedModel, load_model
from calipso_export.probes import TEXTS
from calipso_export.progress import silent
from calipso_export.reverify import reverify
from calipso_runtime import load, load_embedder
from calipso_runtime.backends import connect
from calipso_runtime.bundle import open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.errors import BundleCorruptError
from calipso_runtime.manifest import read_manifest
from calipso_runtime.parity import FailedParityError
from calipso_runtime.reference import read_reference, verify_texts

pytestmark = pytest.mark.slow
MODES = ("open", "embed")
LABELS = ["cat", "dog", "a very small bird", ""]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        noise(500 + number).save(folder / f"{number}.png")
    return folder


def config_of(model: Path, output: Path, **changes: Any) -> ExportConfig:
    return ExportConfig(**{"model": str(model), "random_init": 0, "output": output, "head_mode": "open", **changes})


@pytest.fixture(scope="module", params=MODES)
def exported(
    request: pytest.FixtureRequest, tiny_vit: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of each kind that nobody changes."""
    output = tmp_path_factory.mktemp(request.param) / "tiny.calipso"
    export(config_of(tiny_vit, output, head_mode=request.param, verify_data=pictures))
    return output


@torch.no_grad()
def eager(model: LoadedModel, pictures: Path, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """open_clip's own features of pictures and texts, and logits."""
    module: Any = model.module
    images = torch.stack([model.front_end.eager_input(path) for path in sorted(pictures.iterdir())])
    ids = model.tokenizer(texts)
    logits, _ = module.get_logits(images, ids)
    return (
        functional.normalize(module.encode_image(images), dim=-1).numpy(),
        module.encode_text(ids, normalize=True).numpy(),
        logits.numpy(),
    )


def assert_relative(found: np.ndarray, wanted: np.ndarray, relative: float = 1e-4) -> None:
    assert np.abs(found - wanted).max() < relative * np.abs(wanted).max()


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_features_and_logits_are_open_clips(exported: Path, vit: LoadedModel, pictures: Path, backend: str) -> None:
    image, text, logits = eager(vit, pictures, list(TEXTS))
    paths = [str(path) for path in sorted(pictures.iterdir())]

    with load_embedder(exported, backend=backend) as embedder:
        assert_relative(embedder.image(paths), image)
        assert_relative(embedder.text(TEXTS), text)
    with load(exported, backend=backend) as classifier:
        assert_relative(classifier.logits(paths, prompts=TEXTS), logits)


def test_the_one_graph_gives_the_logits_of_remembered_features(exported: Path, pictures: Path) -> None:
    paths = [str(path) for path in sorted(pictures.iterdir())]

    # Its graphs alone: ONNX Runtime is given the portable one.
    with load(exported / "model.onnx", backend="ort") as classifier:
        own = classifier.run(paths, prompts=LABELS)["logits"]
        assert np.abs(classifier.logits(paths, prompts=LABELS) - own).max() < 1e-5 * np.abs(own).max()


def test_a_label_has_the_feature_of_an_export_with_it(
    exported: Path, tiny_vit: Path, tmp_path: Path, pictures: Path
) -> None:
    export(config_of(tiny_vit, tmp_path / "baked.calipso", head_mode="baked", classes=CLASSES))
    paths = [str(path) for path in sorted(pictures.iterdir())]

    with load(exported, backend="ort") as any_labels, load(tmp_path / "baked.calipso", backend="ort") as baked:
        assert_relative(any_labels.logits(paths, labels=list(CLASSES)), baked.logits(paths), relative=1e-5)


def test_onnx_runtime_is_given_a_tower_at_a_time(exported: Path) -> None:
    bundle = open_bundle(exported)
    engine, _ = connect(bundle, backend="ort", threads=None)

    assert [each.name for each in engine.inputs] == ["image"]
    assert [each.name for each in engine.outputs] == ["embedding"]
    engine.close()
    # Over the weights of the portable graphs: a few nodes on the disk.
    weights = (exported / "model.onnx").stat().st_size
    assert (exported / "text.ort.onnx").stat().st_size < weights / 10


def test_the_graphs_take_any_number_of_pictures_and_of_texts(exported: Path) -> None:
    manifest = read_manifest(exported / "manifest.json")
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    shapes = {
        value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }

    assert shapes["image"][0] == shapes["embedding"][0] == "batch"
    if manifest.head["kind"] == "open":
        assert shapes["token_ids"] == ["texts", 16]
        assert shapes["logits"] == ["batch", "texts"]
        assert shapes["text_embedding"] == ["texts", 32]
    else:
        assert set(shapes) == {"image", "embedding"}
        assert set(manifest.graph["text"]["outputs"]) == {"text_embedding"}
    # An initializer of an input's name would be a constant to TensorRT and OpenVINO.
    assert "token_ids" not in {value.name for value in model.graph.initializer}


def test_the_manifest_names_prompts_and_tokenizer(exported: Path) -> None:
    manifest = read_manifest(exported / "manifest.json")

    assert manifest.labels == ()
    assert len(manifest.prompts["templates"]) == 7
    assert manifest.tokenizer["context_length"] == 16
    assert manifest.tokenizer["sha256"] == manifest.files["tokenizer.json"]["sha256"]
    assert json.loads((exported / "parity.json").read_text())["texts"]["asked"] == list(TEXTS)


def test_two_exports_are_the_same_bytes(exported: Path, tiny_vit: Path, pictures: Path, tmp_path: Path) -> None:
    manifest = read_manifest(exported / "manifest.json")
    again = config_of(tiny_vit, tmp_path / "again", head_mode=manifest.head["kind"], verify_data=pictures)
    export(again)

    names = [name for name in manifest.files if name.endswith((".onnx", "tokenizer.json"))]
    assert len(names) >= 4
    for name in names:
        assert (again.output / name).read_bytes() == (exported / name).read_bytes()


def test_it_is_verified_again_from_its_manifest(exported: Path, tiny_vit: Path, pictures: Path) -> None:
    parity = reverify(exported, data=pictures, checkpoint=None, model=str(tiny_vit), backend="ort", progress=silent)

    assert parity.status == "passed"
    assert parity.document["texts"]["by_file"][exported.name]["relative_error"] < 1e-5


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_check_holds_both_towers_to_the_answers_that_it_carries(exported: Path, backend: str) -> None:
    result = CliRunner().invoke(calipso, ["check", str(exported), "--backend", backend, "--json", "--latency"])

    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert document["status"] == document["texts"]["status"] == "passed"
    assert document["texts"]["by_batch"]["1"]["pictures"] == len(TEXTS)


class Reversed:
    """A text tower whose answers are those to the texts in another order."""

    name, provider, graph = "reversed", "numpy", "nothing"

    def __init__(self, features: np.ndarray, ids: np.ndarray) -> None:
        self._answers = {row.tobytes(): feature for row, feature in zip(ids, features[::-1], strict=True)}

    def run(self, ids: np.ndarray, outputs: list[str]) -> dict[str, np.ndarray]:
        return {name: np.stack([self._answers[row.tobytes()] for row in ids]) for name in outputs}


def test_check_finds_a_text_tower_that_answers_wrongly(exported: Path) -> None:
    bundle = open_bundle(exported)
    reference = read_reference(bundle)
    assert reference is not None
    assert reference.texts is not None
    engine: Any = Reversed(reference.texts.features, reference.texts.token_ids)

    assert verify_texts(engine, bundle).status == "failed"


def test_the_command_classifies_and_embeds(exported: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n\ndog\n")
    run = CliRunner().invoke
    one = str(pictures / "0.png")

    inline = run(calipso, ["classify", str(exported), one, "--labels", "cat, dog", "--json"])
    listed = run(calipso, ["classify", str(exported), one, "--labels", str(tmp_path / "labels.txt"), "--json"])
    embedded = run(
        calipso,
        ["embed", str(exported), str(pictures), "--texts", "a cat," + "word " * 40, "-o", str(tmp_path / "f.npz")],
    )

    assert inline.exit_code == listed.exit_code == embedded.exit_code == 0, embedded.output
    assert inline.output == listed.output
    assert {each["label"] for each in json.loads(inline.output)["predictions"]} == {"cat", "dog"}
    assert "more tokens than the 16" in embedded.stderr
    with np.load(tmp_path / "f.npz") as arrays, load_embedder(exported, backend="ort") as embedder:
        assert arrays["image"].shape == (12, 32)
        np.testing.assert_allclose(arrays["text"][0], embedder.text("a cat"), atol=1e-6)
        assert arrays["texts"].tolist()[0] == "a cat"


def test_inspect_tells_the_kind(exported: Path) -> None:
    result = CliRunner().invoke(calipso, ["inspect", str(exported)])

    assert "any labels" in result.output
    assert "any, given by each call" in result.output


def test_an_embed_of_an_unreadable_picture_goes_on_and_fails(exported: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    arguments = ["embed", str(exported), str(tmp_path / "broken.png"), str(pictures / "0.png"), "-o"]

    result = CliRunner().invoke(calipso, [*arguments, str(tmp_path / "f.npz")])

    assert result.exit_code == 1
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["images"].tolist() == [str(pictures / "0.png")]


def test_labels_of_the_export_are_those_of_a_call_without(tiny_vit: Path, tmp_path: Path, pictures: Path) -> None:
    export(config_of(tiny_vit, tmp_path / "own", classes=CLASSES, templates="photo"))

    with load(tmp_path / "own", backend="ort") as classifier:
        assert classifier.labels == CLASSES
        found = classifier.logits(str(pictures / "0.png"))
        np.testing.assert_allclose(found, classifier.logits(str(pictures / "0.png"), labels=CLASSES), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8-dynamic", "int8-weights", "fp8", "int8-fp16"])
def test_every_precision_is_held_to_its_gates(
    tiny_vit: Path, pictures: Path, tmp_path: Path, precision: str, mode: str
) -> None:
    calib = pictures if precision in ("int8", "fp8", "int8-fp16") else None
    config = config_of(
        tiny_vit,
        tmp_path / "low.calipso",
        head_mode=mode,
        precision=precision,
        opset=OPSET,
        verify_data=pictures,
        calib_data=calib,
        gates=LOOSE,
        repair_minutes=0,
    )

    manifest, parity = export(config)

    assert parity.status == "passed"
    assert manifest.precision == precision
    # It is no fp32 in disguise.
    assert max(each["relative_error"] for each in parity.document["texts"]["by_file"].values()) > 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_pictures_may_be_prepared_in_the_graph(tiny_vit: Path, pictures: Path, tmp_path: Path, mode: str) -> None:
    config = config_of(tiny_vit, tmp_path / "px", head_mode=mode, pixels=True, verify_data=pictures)
    manifest, parity = export(config)

    assert parity.status == "passed"
    assert "pixels" in manifest.graph["inputs"]
    with load(config.output, backend="ort") as classifier:
        assert classifier.classify(str(pictures / "0.png"), labels=LABELS).label in LABELS


def test_a_text_tower_beyond_its_gate_is_no_bundle(tiny_vit: Path, tmp_path: Path) -> None:
    config = config_of(tiny_vit, tmp_path / "low", precision="fp16", gates={"max_relative_logit_error": 1e-6})

    with pytest.raises(FailedParityError, match="of the feature of the text"):
        export(config)
    assert not config.output.exists()


def test_a_bias_and_the_last_token_are_open_clips(tmp_path: Path, pictures: Path) -> None:
    document: dict[str, Any] = {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    }
    path = write_model(tmp_path / "tiny-last.json", document)
    config = config_of(path, tmp_path / "out")
    export(config)
    _, _, logits = eager(load_model(config), pictures, LABELS)

    with load(config.output, backend="ort") as classifier:
        found = classifier.logits([str(path) for path in sorted(pictures.iterdir())], prompts=LABELS)
        assert_relative(found, logits)


def test_a_tokenizer_that_was_changed_is_refused(exported: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(exported, tmp_path / "own"))
    tokenizer = own / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace("cat", "dog"), encoding="utf-8")

    with pytest.raises(BundleCorruptError, match=r"tokenizer\.json"):
        load(own)


def test_engines_of_one_graph_of_both_towers_are_refused_with_the_way_out(exported: Path) -> None:
    if read_manifest(exported / "manifest.json").head["kind"] == "embed":
        pytest.skip("its image tower is what is built")

    result = CliRunner().invoke(calipso, ["build", str(exported)])

    assert result.exit_code == 2
    assert "export it with --embed" in " ".join(result.stderr.split())
