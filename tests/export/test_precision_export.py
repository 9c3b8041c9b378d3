"""A bundle of every precision: it is what it says, answers like eager PyTorch, and is smaller than fp32's."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from export_samples import MakeConfig
from onnx import TensorProto
from precision_samples import LOOSE, OPSET, ExportLow, Traces, lowering

import calipso_runtime
from calipso_export import export
from calipso_export.lint import float_work, tensor_types
from calipso_export.precision import PRECISIONS
from calipso_export.precision.quantised import is_pair_safe
from calipso_export.progress import silent
from calipso_export.reverify import reverify
from calipso_export.steps.lint import broken_claims, lint
from calipso_runtime import backends, devices
from calipso_runtime.graph_file import MODEL_FILE, ORT_MODEL_FILE
from calipso_runtime.manifest import read_manifest

# The bundles of the others are made by the slow tests alone.
QUICK = ("fp32", "fp16", "int8")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PRECISIONS]
LOWER = EVERY[1:]
# Of fp32's bytes. The text weights and the keys of the head stay in fp32.
MOST_BYTES = {name: 0.65 if name in ("fp16", "bf16") else 0.5 for name in PRECISIONS}
PRODUCT = "tower.visual.transformer.resblocks.1.mlp.c_fc/MatMul"
WHY_NO_TENSORRT = backends.why_unavailable("ort-tensorrt")
OneBundle = Callable[[str], Path]


@pytest.fixture(scope="session")
def of(low_bundle: ExportLow, bundle: Path) -> OneBundle:
    """A bundle by its precision."""
    return lambda name: bundle if name == "fp32" else low_bundle(name)


@pytest.fixture(scope="session")
def optimised(low_bundle: ExportLow, traces: Traces) -> ir.Model:
    """The fp32 graph that those bundles were made of."""
    from calipso_export.steps.optimise import optimise

    low_bundle("fp16")
    return optimise(
        next(graph for key, graph in traces.kept.items() if key[1:3] == (OPSET, {"logits", "embedding"})).clone()
    ).portable


@pytest.mark.parametrize("name", EVERY)
def test_the_manifest_says_the_precision_and_the_graph_is_portable(of: OneBundle, name: str) -> None:
    path = of(name)

    manifest = read_manifest(path / "manifest.json")

    assert manifest.precision == name
    assert manifest.parity == "passed"
    assert {each["dtype"] for each in manifest.graph["inputs"].values()} == {"float32"}
    assert lint(path / MODEL_FILE, opset=manifest.graph["opset"], targets=manifest.graph["targets"]) == []


@pytest.mark.parametrize("name", LOWER)
def test_eight_bit_products_are_counted_and_calibration_is_told_where_there_was_one(of: OneBundle, name: str) -> None:
    manifest = read_manifest(of(name) / "manifest.json")
    record = manifest.graph["precision"]

    work = float_work(onnx.load(of(name) / MODEL_FILE))
    assert record["quantised"] == sum(any(each.quantised) for each in work)
    assert (record["quantised"] > 0) is (PRECISIONS[name].quantised is not None)
    assert bool(record["calibration"]) is PRECISIONS[name].activations
    if record["calibration"]:
        assert record["calibration"]["source"] == "the shots"
        assert record["calibration"]["pictures"] + record["calibration"]["chosen_on"] == 9
        methods = record["calibration"]["methods"]
        errors = methods["mean_relative_logit_error"]
        assert errors[methods["chosen"]] == min(errors.values())


@pytest.mark.parametrize("name", EVERY)
def test_the_file_verifies_again_through_the_runtime(of: OneBundle, tiny_vit: Path, shots: Path, name: str) -> None:
    parity = reverify(of(name), data=shots, checkpoint=None, model=str(tiny_vit), backend="ort", progress=silent)

    assert parity.failures == ()
    assert parity.document["worst"]["embedding_cosine"] > 0.97
    assert parity.document["pictures"]["count"] == 9


@pytest.mark.parametrize("name", LOWER)
def test_the_file_is_smaller_than_fp32s(of: OneBundle, name: str) -> None:
    low, plain = ((of(each) / MODEL_FILE).stat().st_size for each in (name, "fp32"))

    assert low < MOST_BYTES[name] * plain


@pytest.mark.parametrize("name", LOWER)
def test_onnx_runtimes_graph_holds_no_large_weights_of_its_own(of: OneBundle, name: str) -> None:
    model = onnx.load(of(name) / ORT_MODEL_FILE, load_external_data=False)

    own = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert own < 0.1 * (of(name) / MODEL_FILE).stat().st_size


@pytest.mark.parametrize("name", LOWER)
def test_what_a_graph_claims_is_so(optimised: ir.Model, name: str) -> None:
    made = lowering(optimised, PRECISIONS[name])

    assert broken_claims(ir.to_proto(made.graphs.portable), made) == []


@pytest.mark.parametrize("name", LOWER)
def test_a_product_that_is_in_fp32_without_being_told_breaks_the_claim(optimised: ir.Model, name: str) -> None:
    claimed = lowering(optimised, PRECISIONS[name])
    tampered = lowering(optimised, PRECISIONS[name], pinned={PRODUCT: "tampered"})

    found = broken_claims(ir.to_proto(tampered.graphs.portable), claimed)

    assert found
    assert all(PRODUCT in each for each in found)
    assert broken_claims(ir.to_proto(tampered.graphs.portable), tampered) == []


@pytest.mark.usefixtures("quick_trace")
@pytest.mark.parametrize("precision", ["fp16", "int8-weights"])
def test_a_graph_may_take_and_give_fp16_and_callers_see_float32(
    *, make_config: MakeConfig, of: OneBundle, precision: str
) -> None:
    config = make_config(
        precision=precision, io_dtype="fp16", opset=OPSET, outputs=("logits", "embedding"), gates=LOOSE
    )

    manifest, parity = export(config)

    types = tensor_types(onnx.load(config.output / MODEL_FILE))
    names = ("image", "logits", "embedding")
    assert {types[name] for name in names} == {TensorProto.FLOAT16}
    values = {**manifest.graph["inputs"], **manifest.graph["outputs"]}
    assert {values[name]["dtype"] for name in names} == {"float16"}
    image = np.random.default_rng(0).uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)
    with calipso_runtime.load(config.output) as half, calipso_runtime.load(of(precision)) as whole:
        found = half.run(image, ("logits", "embedding"))
        assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
        assert half.logits(image).dtype == np.float32
        np.testing.assert_allclose(found["embedding"], whole.embed(image), atol=5e-3)
    assert parity.status == "passed"


@pytest.mark.usefixtures("quick_trace")
def test_the_full_range_of_weights_is_recorded_and_passes_without_vnni(
    make_config: MakeConfig, tiny_vit: Path, shots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "adds_pairs_in_16_bits", lambda: True)
    config = make_config(precision="int8", full_range=True, opset=OPSET, outputs=("logits", "embedding"), gates=LOOSE)

    manifest, parity = export(config)

    assert (manifest.graph["precision"]["pair_safe"], parity.status) == (False, "passed")
    assert manifest.graph["precision"]["without_vnni"] == {"ort": "uint8 weights", "openvino": "fp32 products"}
    again = reverify(
        config.output, data=shots, checkpoint=None, model=str(tiny_vit), backend="openvino", progress=silent
    )
    assert again.status == "passed"


@pytest.mark.parametrize("precision", [pytest.param("int8-dynamic", marks=pytest.mark.slow), "int8"])
def test_int8_weights_are_pair_safe_in_every_graph_of_the_bundle(of: OneBundle, precision: str) -> None:
    manifest = read_manifest(of(precision) / "manifest.json")

    assert manifest.graph["precision"]["pair_safe"] is True
    assert manifest.graph["precision"]["without_vnni"] == {}
    assert is_pair_safe(ir.load(of(precision) / MODEL_FILE).graph)


def test_the_report_tells_how_the_precision_was_calibrated(of: OneBundle) -> None:
    page = (of("int8") / "report.html").read_text()

    chosen = read_manifest(of("int8") / "manifest.json").graph["precision"]["calibration"]["methods"]["chosen"]
    assert "<h2>Precision: int8</h2>" in page
    assert "Ranges of activations measured on 7 pictures of the shots" in page
    assert f"<td>{chosen}</td>" in page
    assert "<h2>Precision" not in (of("fp32") / "report.html").read_text()


def test_the_parity_document_says_which_graphs_were_emulated(of: OneBundle) -> None:
    said = {
        name: json.loads((of(name) / "parity.json").read_text())["shipped"] for name in ("fp32", "int8", "fp16", "fp8")
    }

    assert ["as an emulation" in each for each in said.values()] == [False, False, True, True]


@pytest.mark.gpu
@pytest.mark.skipif(devices.cuda_driver().problem is not None, reason=str(devices.cuda_driver().problem))
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_gpu_answers_within_the_same_gates(of: OneBundle, tiny_vit: Path, shots: Path, precision: str) -> None:
    arguments = {"data": shots, "checkpoint": None, "model": str(tiny_vit), "progress": silent}

    parity = reverify(of(precision), backend="ort-cuda", **arguments)

    assert parity.failures == ()
    assert "CUDAExecutionProvider" in parity.document["shipped"]


@pytest.mark.tensorrt
@pytest.mark.skipif(WHY_NO_TENSORRT is not None, reason=str(WHY_NO_TENSORRT))
def test_onnx_runtimes_tensorrt_provider_answers_within_the_same_gates(
    of: OneBundle, tiny_vit: Path, shots: Path
) -> None:
    arguments = {"data": shots, "checkpoint": None, "model": str(tiny_vit), "progress": silent}

    parity = reverify(of("fp16"), backend="ort-tensorrt", **arguments)

    assert parity.failures == ()
    assert "TensorrtExecutionProvider" in parity.document["shipped"]
