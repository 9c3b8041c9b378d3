"""A second graph over the weights of a first: the same bytes, on the disk once."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from export_samples import MakeConfig
from onnx import TensorProto, external_data_helper, helper, numpy_helper

import calipso_runtime
from calipso_export import export
from calipso_export.shared_weights import refer_to
from calipso_export.steps import write
from calipso_runtime.errors import BundleCorruptError
from calipso_runtime.graph_file import MODEL_FILE, ORT_MODEL_FILE

IMAGE = np.random.default_rng(2).uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)


def product(weight: np.ndarray, small: np.ndarray) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["wx"]), helper.make_node("Add", ["wx", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(weight)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(small, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_reference_leads_to_the_bytes_in_the_other_file_whatever_stands_before_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, small = rng.standard_normal((64, 48)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    # A decoy with the same beginning, and a first file of another order.
    decoy = weight.copy()
    decoy[-1, -1] += 1
    first = product(weight, small)
    first.graph.initializer.insert(0, numpy_helper.from_array(decoy, "decoy"))
    onnx.save(first, tmp_path / "first.onnx")
    second = ir.from_proto(product(weight, small))

    refer_to(second.graph, tmp_path / "first.onnx")
    ir.save(second, tmp_path / "second.onnx")

    written = onnx.load(tmp_path / "second.onnx", load_external_data=False)
    assert [external_data_helper.uses_external_data(tensor) for tensor in written.graph.initializer] == [True, False]
    x = rng.standard_normal((3, 64)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(tmp_path / "second.onnx").run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weight + small, atol=1e-4)


def test_a_tensor_that_the_other_file_does_not_hold_stays(tmp_path: Path) -> None:
    weight, small = np.ones((64, 48), np.float32), np.zeros(48, np.float32)
    onnx.save(product(weight, small), tmp_path / "first.onnx")
    second = ir.from_proto(product(2 * weight, small))

    refer_to(second.graph, tmp_path / "first.onnx")

    assert not any(isinstance(value.const_value, ir.ExternalTensor) for value in second.graph.initializers.values())


def test_both_graphs_of_a_bundle_answer_alike(bundle: Path) -> None:
    with (
        calipso_runtime.load(bundle / MODEL_FILE, backend="ort") as portable,
        calipso_runtime.load(bundle / ORT_MODEL_FILE, backend="ort") as specialised,
        calipso_runtime.load(bundle, backend="ort") as whole,
    ):
        np.testing.assert_allclose(portable.logits(IMAGE), specialised.logits(IMAGE), atol=2e-4)
        np.testing.assert_array_equal(whole.logits(IMAGE), specialised.logits(IMAGE))
        assert f"ort runs {ORT_MODEL_FILE}" in whole.backend_reason


def test_openvino_answers_like_both(bundle: Path) -> None:
    pytest.importorskip("openvino")

    with calipso_runtime.load(bundle, backend="openvino") as other, calipso_runtime.load(bundle, backend="ort") as ort:
        np.testing.assert_allclose(other.logits(IMAGE), ort.logits(IMAGE), atol=2e-4)


@pytest.mark.usefixtures("traced_once")
def test_the_second_graph_refers_to_data_that_lies_beside_the_first(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MAX_EMBEDDED_BYTES", 10_000)
    config = make_config()

    _, parity = export(config)

    model = onnx.load(config.output / ORT_MODEL_FILE, load_external_data=False)
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert (places, parity.status) == ({"model.onnx.data"}, "passed")


def test_a_second_graph_whose_first_was_changed_is_refused(bundle: Path, tmp_path: Path) -> None:
    for name in (MODEL_FILE, ORT_MODEL_FILE):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    content = bytearray((tmp_path / MODEL_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / MODEL_FILE).write_bytes(content)

    with pytest.raises(BundleCorruptError, match=r"model\.onnx is missing, truncated or edited"):
        calipso_runtime.load(tmp_path / ORT_MODEL_FILE)
