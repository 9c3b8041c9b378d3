"""Bundles below fp32 in the runtime: int8 is exact on every CPU, and types that the graph does not have are refused."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_samples import LABELS, SIZE, MakeBundle, tiny_manifest, write_graph

import calipso_runtime
from calipso_runtime import devices
from calipso_runtime.backends import ort_cache
from calipso_runtime.bundle import Bundle, open_bundle
from calipso_runtime.errors import BackendError, BundleCorruptError
from calipso_runtime.pair_sums import may_overflow

NO_VNNI, VNNI = "fpu sse4_2 avx avx2 avx512f avx512bw", "fpu avx2 avx512f avx512_vnni"
# Neighbours of one sign, and activations to match: every pair of products overflows 16 bits.
WEIGHT = np.where(np.arange(3 * SIZE[0] * SIZE[1])[:, None] % 4 < 2, 127, -127).astype(np.int8) * np.ones(
    len(LABELS), np.int8
)
STEP = 2.0**-7
SIGNS = np.where(np.arange(3 * SIZE[0] * SIZE[1]) % 4 < 2, 1, -1)
IMAGES = (SIGNS * np.array([[127], [-127], [2]]) * STEP).reshape(3, 3, *SIZE).astype(np.float32)
# In integers, as VNNI adds them up; fp32 holds them all.
EXACT = (np.rint(IMAGES.reshape(3, -1) / STEP).astype(np.int64) @ WEIGHT.astype(np.int64) * STEP * 0.25).astype(
    np.float32
)


def graph_record(**changes: object) -> dict[str, object]:
    values = {
        "opset": 18,
        "inputs": {"image": {"dtype": "float32", "shape": ["batch", 3, *SIZE]}},
        "outputs": {"logits": {"dtype": "float32", "shape": ["batch", len(LABELS)]}},
    }
    return {**values, **changes}


def int8_bundle(folder: Path, *, pair_safe: bool | None, operator: bool = False) -> Path:
    """One int8 product of an image's pixels with weights of the full range; all of it is exact in fp32.

    Args:
        folder: where it is written.
        pair_safe: what the manifest says of the weights; nothing where None, as in earlier versions.
        operator: whether the product is ONNX Runtime's own, twice and with one zero point, as in earlier versions.
    """
    count, size = len(LABELS), 3 * SIZE[0] * SIZE[1]
    constants = {
        "flat_shape": np.array([0, -1], np.int64),
        "step": np.float32(STEP),
        "zero": np.uint8(128) if operator else np.int8(0),
        "weight": WEIGHT,
        "steps": np.full(count, 0.25, np.float32),
        "zeros": np.zeros(count, np.int8),
        "other_weight": WEIGHT[::-1].copy(),
    }
    nodes = [
        helper.make_node("Reshape", ["image", "flat_shape"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "step", "zero"], ["quantised"]),
    ]
    if operator:
        nodes += [
            helper.make_node(
                "MatMulIntegerToFloat",
                ["quantised", weight, "step", "steps", "zero", "zeros"],
                [result],
                domain="com.microsoft",
            )
            for weight, result in (("weight", "first"), ("other_weight", "second"))
        ]
        nodes.append(helper.make_node("Add", ["first", "second"], ["logits"]))
    else:
        nodes += [
            helper.make_node("DequantizeLinear", ["quantised", "step", "zero"], ["activation"]),
            helper.make_node("DequantizeLinear", ["weight", "steps", "zeros"], ["dequantised"], axis=1),
            helper.make_node("MatMul", ["activation", "dequantised"], ["logits"]),
        ]
        del constants["other_weight"]
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, *SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", count])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    assert WEIGHT.shape == (size, count)
    imports = [helper.make_opsetid("", 18), *([helper.make_opsetid("com.microsoft", 1)] if operator else [])]
    record = {} if pair_safe is None else {"pair_safe": pair_safe}
    return write_graph(
        folder,
        helper.make_model(graph, opset_imports=imports, ir_version=9),
        tiny_manifest(precision="int8", graph=graph_record(precision=record), parity="passed"),
    )


@pytest.fixture(params=["ort", "openvino"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine that multiplies int8 on a CPU."""
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="needs OpenVINO")
    return str(request.param)


@pytest.fixture
def no_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as on an x86 CPU without VNNI, whatever this is."""
    monkeypatch.setattr(devices, "has_x86_vectors", lambda: True)
    monkeypatch.setattr(devices, "cpu_flags", lambda: NO_VNNI)


@pytest.mark.usefixtures("no_vnni")
@pytest.mark.parametrize("pair_safe", [False, None], ids=["full range", "an earlier version's"])
def test_weights_that_can_overflow_are_multiplied_exactly_without_vnni(
    tmp_path: Path, engine: str, *, pair_safe: bool | None
) -> None:
    path = int8_bundle(tmp_path, pair_safe=pair_safe)

    with calipso_runtime.load(path, backend=engine) as classifier:
        found = classifier.logits(IMAGES)

    np.testing.assert_array_equal(found, EXACT)


@pytest.mark.usefixtures("no_vnni")
def test_weights_that_onnx_runtime_cannot_convert_are_refused(tmp_path: Path) -> None:
    path = int8_bundle(tmp_path, pair_safe=None, operator=True)

    with pytest.raises(BackendError, match="export the bundle again, without --full-range"):
        calipso_runtime.load(path, backend="ort")


@pytest.mark.usefixtures("no_vnni")
def test_forms_of_two_ranges_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cache, "MIN_BYTES", 0)
    monkeypatch.setenv("CALIPSO_CACHE", str(tmp_path / "cache"))
    path = int8_bundle(tmp_path / "bundle", pair_safe=False)
    for has_vnni in (True, False):
        monkeypatch.setattr(devices, "has_vnni", lambda has_vnni=has_vnni: has_vnni)
        calipso_runtime.load(path, backend="ort").close()

    assert len(list((tmp_path / "cache" / "optimised").iterdir())) == 2


@pytest.mark.parametrize(
    ("precision", "pair_safe", "flags", "is_x86", "overflows"),
    [
        ("int8", False, NO_VNNI, True, True),
        ("int8-dynamic", False, NO_VNNI, True, True),
        ("int8-fp16", None, NO_VNNI, True, True),
        ("int8", False, "", True, True),
        ("int8", True, NO_VNNI, True, False),
        ("int8", False, VNNI, True, False),
        ("int8", False, "avx2 avx_vnni", True, False),
        ("int8", False, "", False, False),
        ("int8-weights", None, NO_VNNI, True, False),
        ("fp32", None, NO_VNNI, True, False),
        ("fp8", None, NO_VNNI, True, False),
    ],
)
def test_only_int8_products_of_unsafe_weights_can_overflow_and_only_on_x86_without_vnni(
    *,
    make_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    pair_safe: bool | None,
    flags: str,
    is_x86: bool,
    overflows: bool,
) -> None:
    record = {} if pair_safe is None else {"pair_safe": pair_safe}
    path = make_bundle(precision=precision, graph=graph_record(precision=record))
    monkeypatch.setattr(devices, "cpu_flags", lambda: flags)
    monkeypatch.setattr(devices, "has_x86_vectors", lambda: is_x86)

    assert may_overflow(open_bundle(path)) is overflows


@pytest.mark.usefixtures("no_vnni")
def test_a_bare_graph_that_carries_no_manifest_counts_as_unsafe(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    path.write_bytes(b"no manifest in it")

    assert may_overflow(Bundle(path=path, model_path=path, manifest=None, digest="", ort_model_path=None))


@pytest.mark.parametrize(
    ("flags", "found"), [(NO_VNNI, False), (VNNI, True), ("avx_vnni", True), ("avx_vnni_int8", False)]
)
def test_vnni_is_read_from_the_cpus_flags(monkeypatch: pytest.MonkeyPatch, flags: str, found: bool) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: flags)

    assert devices.has_vnni() is found


@pytest.mark.parametrize("name", ["image", "logits"])
def test_a_graph_of_another_type_than_its_manifest_promises_is_refused(make_bundle: MakeBundle, name: str) -> None:
    record = graph_record()
    values = record["inputs"] if name == "image" else record["outputs"]
    values[name]["dtype"] = "float16"

    with pytest.raises(BundleCorruptError, match=f"its {name} is float32 .*, its manifest promises float16"):
        calipso_runtime.load(make_bundle(graph=record), backend="ort")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int8", "half"])
def test_a_type_that_the_runtime_does_not_feed_is_refused(make_bundle: MakeBundle, dtype: str) -> None:
    record = graph_record(inputs={"image": {"dtype": dtype, "shape": ["batch", 3, *SIZE]}})

    with pytest.raises(BundleCorruptError, match=f"promises image as '{dtype}': this version takes float32 or float16"):
        calipso_runtime.load(make_bundle(graph=record), backend="ort")


def test_a_manifest_that_says_nothing_of_types_means_float32(make_bundle: MakeBundle) -> None:
    with calipso_runtime.load(make_bundle(graph={"opset": 18}), backend="ort") as classifier:
        assert classifier.logits(np.zeros((3, *SIZE), np.float32)).dtype == np.float32


def test_a_manifest_that_lists_its_inputs_without_names_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleCorruptError, match="does not list inputs and outputs by name"):
        calipso_runtime.load(make_bundle(graph={"opset": 18, "inputs": ["image"]}), backend="ort")
