"""The written graph: portable, dynamic, named as asked, no larger than its weights, and the same bytes everywhere."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_samples import CLASSES, HEAD, MakeConfig
from onnx import helper, numpy_helper

import calipso_runtime
from calipso_export import ExportConfig, export
from calipso_export.models import LoadedModel
from calipso_export.precision.quantised import quantisable
from calipso_export.reference import HeadTensors
from calipso_export.steps import write
from calipso_export.steps.trace import classifier_module, trace
from calipso_export.tidy import tidy
from calipso_runtime.errors import BundleCorruptError
from calipso_runtime.graph_file import METADATA_DIGEST, METADATA_MANIFEST, MODEL_FILE
from calipso_runtime.manifest import read_manifest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def graph(bundle: Path) -> onnx.ModelProto:
    return onnx.load(bundle / MODEL_FILE)


def test_the_outputs_are_named_and_ordered_as_asked(graph: onnx.ModelProto) -> None:
    assert [value.name for value in graph.graph.input] == ["image"]
    assert [value.name for value in graph.graph.output] == ["logits", "embedding", "probabilities", "tokens"]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_any_batch_is_answered_picture_by_picture(bundle: Path, batch: int) -> None:
    session = onnxruntime.InferenceSession(bundle / MODEL_FILE, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype(np.float32)

    together = session.run(None, {"image": image})
    alone = [session.run(None, {"image": image[row : row + 1]}) for row in range(batch)]

    for index, values in enumerate(together):
        assert len(values) == batch
        np.testing.assert_allclose(values, np.concatenate([row[index] for row in alone]), atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_nothing_is_left_to_compute_of_weights_alone(vit: LoadedModel, tiny_vit: Path) -> None:
    config = ExportConfig(
        model=str(tiny_vit), random_init=0, classes=CLASSES, output=Path("unused"), calip=False, cache=False
    )
    # Without CALIP the last block takes slices of its weights: queries of one token, keys and values of all.
    text = torch.nn.functional.normalize(torch.ones(len(CLASSES), 32), dim=-1)
    traced = trace(classifier_module(vit, HeadTensors(text=text), ("logits",)), vit, config)

    of_constants = [node for node in traced.graph if all(v is None or v.const_value for v in node.inputs)]
    assert [node.name for node in of_constants if node.inputs] == []
    last = [node.name for node in quantisable(traced.graph) if "resblocks.1/MatMul" in str(node.name)]
    assert len(last) == 2


def test_probabilities_are_the_softmax_over_the_temperature_and_vectors_have_length_1(bundle: Path) -> None:
    with calipso_runtime.load(bundle) as classifier:
        image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)
        found = classifier.run(image, classifier.outputs)

        promised = classifier.confidence.probabilities(found["logits"])

    np.testing.assert_allclose(found["probabilities"], promised, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["tokens"], axis=-1), 1, atol=1e-5)
    assert found["tokens"].shape == (2, 16, 32)


def test_only_standard_operators_and_no_functions_are_used(graph: onnx.ModelProto) -> None:
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    assert {entry.domain for entry in graph.opset_import} == {""}
    assert "Attention" not in {node.op_type for node in graph.graph.node}
    assert not graph.functions


def test_no_tensor_stands_in_the_file_twice(graph: onnx.ModelProto) -> None:
    arrays = [numpy_helper.to_array(tensor) for tensor in graph.graph.initializer]
    digests = Counter(hashlib.sha256(f"{a.dtype}{a.shape}".encode() + a.tobytes()).digest() for a in arrays)

    assert max(digests.values()) == 1


def test_equal_tensors_are_shared_and_others_are_not() -> None:
    values = {
        "first": np.ones((2, 3), np.float32),
        "again": np.ones((3, 2), np.float32).T,
        "turned": np.ones((3, 2), np.float32),
        "whole": np.ones((2, 3), np.int32),
        "other": np.zeros((2, 3), np.float32),
    }
    nodes = [helper.make_node("Identity", [name], [f"{name} out"]) for name in values]
    outputs = [helper.make_tensor_value_info(f"{name} out", 1, None) for name in values]
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = ir.from_proto(helper.make_model(helper.make_graph(nodes, "crafted", [], outputs, tensors)))

    tidy(graph)

    assert set(graph.graph.initializers) == set(values) - {"again"}
    assert [node.inputs[0].name for node in graph.graph] == ["first", "first", "turned", "whole", "other"]


def test_the_file_is_little_more_than_the_weights_of_tower_and_heads(bundle: Path, vit: LoadedModel) -> None:
    visual = sum(weight.numel() * weight.element_size() for weight in vit.visual.parameters())
    heads = 4 * 32 * (len(CLASSES) + 3 * len(CLASSES))

    assert visual + heads < (bundle / MODEL_FILE).stat().st_size < visual + heads + 60_000


def test_nothing_in_the_file_tells_where_it_was_made(bundle: Path, graph: onnx.ModelProto) -> None:
    content = (bundle / MODEL_FILE).read_bytes()

    for trace_of in (str(REPOSITORY), "pkg.torch", "site-packages", ".py", "File "):
        assert trace_of.encode() not in content
    assert not any(node.doc_string or node.metadata_props for node in graph.graph.node)
    assert not any(value.doc_string or value.metadata_props for value in graph.graph.initializer)


def test_the_manifest_is_in_the_metadata(bundle: Path, graph: onnx.ModelProto) -> None:
    metadata = {entry.key: entry.value for entry in graph.metadata_props}

    assert set(metadata) == {METADATA_MANIFEST, METADATA_DIGEST}
    assert json.loads(metadata[METADATA_MANIFEST]) == read_manifest(bundle / "manifest.json").core()


def test_the_manifest_says_what_was_exported(bundle: Path, vit: LoadedModel) -> None:
    manifest = read_manifest(bundle / "manifest.json")

    assert manifest.labels == CLASSES
    assert manifest.preprocess == vit.preprocess
    assert manifest.model["name"] == "tiny-vit"
    assert manifest.model["weights"] == {"source": "random", "seed": 0, "sha256": vit.weights["sha256"]}
    assert {key: manifest.head["tip_adapter"][key] for key in ("alpha", "beta")} == {"alpha": 1.5, "beta": 5.5}
    assert {key: manifest.head["calip"][key] for key in ("b2", "b3")} == {"b2": HEAD["b2"], "b3": HEAD["b3"]}
    assert manifest.head["tip_adapter"]["shots"] == {"least": 3, "most": 3}
    assert manifest.graph["cache_layout"] == [[3, 3]]
    assert manifest.graph["outputs"]["tokens"] == {"dtype": "float32", "shape": ["batch", 16, 32]}
    files = {"model.onnx", "model.ort.onnx", "parity.json", "reference.npz", "report.html", "search.json"}
    assert set(manifest.files) == files
    assert manifest.parity == "passed"


@pytest.mark.slow
def test_opset_20_gives_the_same_answers(bundle: Path, make_config: MakeConfig) -> None:
    config = make_config(opset=20)

    manifest, parity = export(config)

    image = np.random.default_rng(2).uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)
    with calipso_runtime.load(bundle) as first, calipso_runtime.load(config.output) as second:
        np.testing.assert_allclose(first.logits(image), second.logits(image), atol=1e-4)
    assert (manifest.graph["opset"], parity.status) == (20, "passed")
    assert onnx.load(config.output / MODEL_FILE).opset_import[0].version == 20


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"calip": False}, {"cache": False}])
def test_a_head_that_is_switched_off_is_not_in_the_graph(make_config: MakeConfig, changes: dict[str, bool]) -> None:
    name, own = ("calip", ("b2", "b3")) if "calip" in changes else ("tip_adapter", ("alpha", "beta"))
    config = make_config(**changes, **dict.fromkeys(own), outputs=("logits",))

    manifest, parity = export(config)

    graph = onnx.load(config.output / MODEL_FILE)
    operators = Counter(node.op_type for node in graph.graph.node)
    assert manifest.head[name] == {"used": False, "reason": "switched off"}
    assert (operators["Exp"], operators["ReduceMax"]) == ((1, 0) if name == "calip" else (0, 1))
    assert any(tensor.name.startswith("tip_adapter.") for tensor in graph.graph.initializer) is (name == "calip")
    assert parity.status == "passed"


@pytest.mark.usefixtures("traced_once")
def test_weights_too_large_for_one_file_lie_beside_it(
    make_config: MakeConfig, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MAX_EMBEDDED_BYTES", 10_000)
    config = make_config()

    manifest, parity = export(config)

    assert {path.name for path in config.output.iterdir()} == {*manifest.files, "manifest.json"}
    assert manifest.files["model.onnx.data"]["bytes"] > manifest.files["model.onnx"]["bytes"]
    image = np.random.default_rng(2).uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)
    with calipso_runtime.load(bundle) as first, calipso_runtime.load(config.output) as second:
        np.testing.assert_array_equal(first.logits(image), second.logits(image))
    assert parity.status == "passed"


@pytest.mark.usefixtures("traced_once")
def test_a_changed_byte_in_the_weights_beside_is_found(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MAX_EMBEDDED_BYTES", 10_000)
    config = make_config()
    export(config)
    data = config.output / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)

    with pytest.raises(BundleCorruptError, match=r"model\.onnx\.data was changed"):
        calipso_runtime.load(config.output)
