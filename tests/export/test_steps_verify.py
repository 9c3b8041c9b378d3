"""The gate: what does not answer like eager PyTorch is not written, unless it is forced and marked."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from export_samples import MakeConfig, below, noise, write_shots
from onnx import numpy_helper

import calipso_runtime
from calipso_export import Gates, export
from calipso_export.models import LoadedModel
from calipso_export.progress import silent
from calipso_export.reverify import reverify
from calipso_export.steps import trace as trace_step
from calipso_export.steps import write
from calipso_export.steps.verify import edge_cases
from calipso_runtime.errors import BackendUnavailableError, CalipsoWarning, ModelError, ParityError, UsageError
from calipso_runtime.graph_file import MODEL_FILE
from calipso_runtime.reference import BATCH_SIZES

Plant = Callable[[str, Callable[[np.ndarray], np.ndarray]], None]


@pytest.fixture
def plant(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Let the trace come out with one tensor changed."""

    def change(name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
        def trace(*_: object) -> ir.Model:
            model = onnx.load(bundle / MODEL_FILE)
            (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
            array = how(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
            graph = ir.from_proto(model)
            graph.metadata_props.clear()
            return graph

        monkeypatch.setattr(trace_step, "trace", trace)

    return change


def swap_classes(text: np.ndarray) -> np.ndarray:
    return text[:, ::-1]


def one_value_off(weights: np.ndarray) -> np.ndarray:
    weights.flat[0] += 0.1
    return weights


def one_value_lost(weights: np.ndarray) -> np.ndarray:
    weights.flat[0] = np.nan
    return weights


ERRORS = {
    "classes swapped": ("zero_shot.weight", swap_classes),
    "a key off": ("tip_adapter.blocks.0.keys", one_value_off),
    "a weight of the tower off": ("tower.visual.proj", one_value_off),
    "a weight is NaN": ("tower.visual.proj", one_value_lost),
}


@pytest.mark.parametrize(("name", "how"), ERRORS.values(), ids=ERRORS)
def test_a_planted_error_fails_the_gate_and_leaves_nothing(
    make_config: MakeConfig, plant: Plant, name: str, how: Callable[[np.ndarray], np.ndarray]
) -> None:
    plant(name, how)
    config = make_config()

    with pytest.raises(ParityError, match="does not answer like eager PyTorch, and no bundle was written"):
        export(config)

    assert below(config.output.parent) == set()


def test_without_the_planted_error_the_same_graph_passes(make_config: MakeConfig, plant: Plant) -> None:
    plant("zero_shot.weight", lambda text: text)

    _, parity = export(make_config())

    assert parity.status == "passed"


@pytest.mark.parametrize("how", [swap_classes, one_value_lost])
def test_force_writes_the_bundle_and_the_runtime_warns(
    make_config: MakeConfig, plant: Plant, how: Callable[[np.ndarray], np.ndarray]
) -> None:
    plant("zero_shot.weight", how)
    config = make_config(force=True)

    manifest, parity = export(config)

    assert (manifest.parity, parity.status) == ("failed", "failed")
    document = json.loads((config.output / "parity.json").read_text(), parse_constant=pytest.fail)
    assert (document["status"], document["failures"]) == ("failed", list(parity.failures))
    assert "class=failed>failed" in (config.output / "report.html").read_text()
    with pytest.warns(CalipsoWarning, match="failed its parity gate"):
        calipso_runtime.load(config.output)


@pytest.mark.usefixtures("traced_once")
def test_a_gate_of_the_configuration_counts(make_config: MakeConfig) -> None:
    with pytest.raises(ParityError, match="allowed is 1e-12"):
        export(make_config(gates=Gates(max_relative_logit_error=1e-12)))


def test_every_batch_size_and_edge_case_was_asked(bundle: Path, vit: LoadedModel) -> None:
    document = json.loads((bundle / "parity.json").read_text())

    assert list(document["by_batch"]) == [
        f"{name}, {batch}" for name in ("model.onnx", "model.ort.onnx") for batch in BATCH_SIZES
    ]
    assert document["pictures"] == {"source": "the shots", "count": 9, "edge_cases": len(edge_cases(vit.front_end))}
    assert {measured["pictures"] for measured in document["by_batch"].values()} == {9 + len(edge_cases(vit.front_end))}
    assert document["worst"]["relative_logit_error"] < 5e-5


@pytest.mark.usefixtures("traced_once")
def test_labelled_pictures_give_the_accuracy_of_both_sides(make_config: MakeConfig, tmp_path: Path) -> None:
    data = write_shots(tmp_path / "held-out", count=2)
    noise(50).save(data / "unlabelled.png")

    with pytest.warns(CalipsoWarning, match="1 of 7 pictures count for no accuracy"):
        _, parity = export(make_config(verify_data=data))

    assert parity.document["pictures"]["source"] == "the folder held-out"
    assert parity.document["accuracy"]["pictures"] == 6
    assert parity.document["accuracy"]["eager"] == parity.document["accuracy"]["shipped"]


def again(bundle: Path, tiny_vit: Path, **changes: object) -> object:
    values = {"data": None, "checkpoint": None, "model": str(tiny_vit), "backend": "auto", "progress": silent}
    return reverify(bundle, **{**values, **changes})


def test_a_bundle_and_its_bare_graph_verify_again(bundle: Path, tiny_vit: Path, shots: Path) -> None:
    whole = again(bundle, tiny_vit, data=shots)
    bare = again(bundle / MODEL_FILE, tiny_vit)

    assert (whole.status, bare.status) == ("passed", "passed")
    assert whole.document["accuracy"]["pictures"] == 9
    assert bare.document["pictures"]["count"] == 0


@pytest.mark.usefixtures("traced_once")
def test_a_bundle_with_its_weights_beside_verifies_again(
    make_config: MakeConfig, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MAX_EMBEDDED_BYTES", 1000)
    config = make_config()
    export(config)

    assert again(config.output, tiny_vit).status == "passed"


@pytest.mark.slow
def test_very_unequal_shots_verify_again(make_config: MakeConfig, tiny_vit: Path, tmp_path: Path) -> None:
    folder = write_shots(tmp_path / "unequal", count=1)
    for number in range(1, 9):
        noise(300 + number).save(folder / "bee" / f"{number}.png")
    config = make_config(shots=folder, outputs=("logits",), epochs=1)

    manifest, parity = export(config)

    assert manifest.graph["cache_layout"] == [[2, 1], [1, 9]]
    assert (parity.status, again(config.output, tiny_vit).status) == ("passed", "passed")


def test_a_forced_bundle_fails_again(make_config: MakeConfig, plant: Plant, tiny_vit: Path) -> None:
    plant("zero_shot.weight", swap_classes)
    config = make_config(force=True)
    export(config)

    with pytest.warns(CalipsoWarning):
        parity = again(config.output, tiny_vit)

    assert parity.status == "failed"


def test_a_bundle_does_not_verify_against_other_weights(bundle: Path, tmp_path: Path, tiny_vit: Path) -> None:
    from safetensors.torch import save_file

    from calipso_export import ExportConfig
    from calipso_export.models import load_model

    other = load_model(ExportConfig(model=str(tiny_vit), classes=("a", "b"), output=tmp_path, random_init=1))
    save_file(other.module.state_dict(), tmp_path / "other.safetensors")

    with pytest.raises(ModelError, match=r"these weights are not those that .*tiny\.calipso was made from"):
        again(bundle, tiny_vit, checkpoint=tmp_path / "other.safetensors")


def test_a_configuration_file_has_to_be_given_again(bundle: Path, tiny_vit: Path) -> None:
    with pytest.raises(ModelError, match=r"configuration tiny-vit\.json: give it with --model"):
        again(bundle, tiny_vit, model=None)


@pytest.mark.parametrize(("backend", "kind"), [("ort-cuda", BackendUnavailableError), ("no such engine", UsageError)])
def test_an_engine_that_is_not_there_is_said(bundle: Path, tiny_vit: Path, backend: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        again(bundle, tiny_vit, backend=backend)
