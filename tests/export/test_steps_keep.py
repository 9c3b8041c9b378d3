"""What a bundle carries of eager PyTorch, and that engines are held to it where there is none."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from export_samples import CLASSES, MakeConfig, write_shots
from PIL import Image
from precision_samples import ExportLow

from calipso_export import export
from calipso_export.models import LoadedModel
from calipso_export.steps.gather import Picture
from calipso_export.steps.verify import EagerAnswers, edge_cases
from calipso_runtime.bundle import MANIFEST_FILE, PARITY_FILE, REFERENCE_FILE, file_entry, open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.graph_file import MODEL_FILE, ORT_MODEL_FILE
from calipso_runtime.manifest import read_manifest, write_manifest
from calipso_runtime.parity import Answers
from calipso_runtime.reference import Reference, read_reference

ENGINES = ("ort", "openvino")


def check(*arguments: object) -> Result:
    return CliRunner().invoke(calipso, ["check", *map(str, arguments)])


def kept(path: Path) -> Reference:
    reference = read_reference(open_bundle(path))
    assert reference is not None
    return reference


@pytest.mark.parametrize("backend", ENGINES)
def test_an_exported_bundle_passes_its_own_check(bundle: Path, backend: str) -> None:
    pytest.importorskip({"ort": "onnxruntime", "openvino": "openvino"}[backend])

    result = check(bundle, "--backend", backend)

    assert result.exit_code == 0, result.output
    assert result.stdout.rstrip().endswith("parity: passed")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_of_lower_precision_passes_by_its_own_gates(low_bundle: ExportLow, precision: str) -> None:
    result = check(low_bundle(precision), "--backend", "ort", "--json")

    document = json.loads(result.stdout)
    assert (result.exit_code, document["status"]) == (0, "passed")
    assert document["gates"] == json.loads((low_bundle(precision) / PARITY_FILE).read_text())["gates"]


def spoil(folder: Path, name: str) -> None:
    """Swap the classes of a weight inside the graphs' files, and let the manifest vouch for them."""
    (tensor,) = [tensor for tensor in onnx.load(folder / MODEL_FILE).graph.initializer if tensor.name == name]
    right = tensor.raw_data
    wrong = np.frombuffer(right, np.float32).reshape(tensor.dims)[:, ::-1].tobytes()
    manifest = read_manifest(folder / MANIFEST_FILE)
    files = dict(manifest.files)
    for model in (folder / MODEL_FILE, folder / ORT_MODEL_FILE):
        content = model.read_bytes()
        assert content.count(right) == 1
        model.write_bytes(content.replace(right, wrong))
        files[model.name] = file_entry(model)
    write_manifest(folder / MANIFEST_FILE, dataclasses.replace(manifest, files=files))


@pytest.mark.parametrize("backend", ENGINES)
def test_classes_that_were_swapped_behind_every_hash_fail_it(bundle: Path, tmp_path: Path, backend: str) -> None:
    pytest.importorskip({"ort": "onnxruntime", "openvino": "openvino"}[backend])
    folder = Path(shutil.copytree(bundle, tmp_path / "spoilt.calipso"))
    spoil(folder, "zero_shot.weight")

    result = check(folder, "--backend", backend)

    assert result.exit_code == 1
    assert f"spoilt.calipso on {backend} does not answer like eager PyTorch" in result.stderr


@pytest.mark.slow
def test_another_bundles_answers_fail_it(bundle: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(random_init=1, outputs=("logits", "embedding", "probabilities"))
    export(config)
    shutil.copy(bundle / REFERENCE_FILE, config.output / REFERENCE_FILE)
    manifest = read_manifest(config.output / MANIFEST_FILE)
    files = {**manifest.files, REFERENCE_FILE: file_entry(config.output / REFERENCE_FILE)}
    write_manifest(config.output / MANIFEST_FILE, dataclasses.replace(manifest, files=files))

    result = check(config.output)

    assert result.exit_code == 1
    assert "relative logit error" in result.stderr


def test_it_carries_the_shots_and_the_edge_cases_as_open_clip_prepares_them(
    bundle: Path, shots: Path, vit: LoadedModel
) -> None:
    reference = kept(bundle)
    edges = edge_cases(vit.front_end)
    names = [f"{name}/{number}.png" for name in CLASSES for number in range(3)]

    assert reference.names == (*names, *(edge.name for edge in edges))
    assert (reference.given, reference.edge_cases) == (9, len(edges))
    assert set(reference.truth) == {None}
    assert set(reference.answers.outputs) == {"logits", "embedding", "probabilities"}
    pictures = [Image.open(shots / name) for name in names] + [edge.content for edge in edges]
    wanted = np.stack([vit.transform(picture).numpy() for picture in pictures])
    np.testing.assert_array_equal(reference.images(range(len(pictures)), read_manifest(bundle / MANIFEST_FILE)), wanted)


@pytest.mark.usefixtures("traced_once")
def test_labels_are_carried_where_they_are_known(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(verify_data=write_shots(tmp_path / "held-out", count=2))
    export(config)

    assert kept(config.output).truth[:6] == (0, 0, 1, 1, 2, 2)
    assert "top-1 on 6 labelled pictures" in check(config.output).stdout


@pytest.mark.usefixtures("traced_once")
def test_it_can_be_left_out(make_config: MakeConfig) -> None:
    config = make_config(reference=False)
    manifest, _ = export(config)

    assert REFERENCE_FILE not in manifest.files
    assert not (config.output / REFERENCE_FILE).exists()
    assert "--no-reference" in check(config.output).stderr


@pytest.mark.parametrize(("count", "sampled"), [(0, 0), (5, 5), (32, 32), (1000, 32)])
def test_of_many_pictures_an_even_sample_is_asked_at_every_batch_size(
    vit: LoadedModel, count: int, sampled: int
) -> None:
    pictures = [Picture(name=str(number), content=Path("none"), label=number // 10) for number in range(count)]
    eager = EagerAnswers(
        everything=(*pictures, *edge_cases(vit.front_end)),
        answers=Answers(outputs={}),
        about={"pictures": {"count": count}},
    )

    chosen = eager.sample()

    edges = len(edge_cases(vit.front_end))
    assert len(chosen) == sampled + edges
    assert chosen[sampled:] == list(range(count, count + edges))
    assert count < 1000 or len({pictures[index].label for index in chosen[:sampled]}) == sampled
