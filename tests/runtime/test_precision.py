"""Bundles below fp32 in the runtime: types that the graph does not have are refused, and weak CPUs are told of."""

import warnings

import numpy as np
import pytest
from runtime_samples import LABELS, SIZE, MakeBundle

import calipso_runtime
from calipso_runtime import devices
from calipso_runtime.errors import BundleCorruptError, CalipsoWarning

NO_VNNI, VNNI = "fpu sse4_2 avx avx2 avx512f avx512bw", "fpu avx2 avx512f avx512_vnni"
INT8 = ("int8", "int8-dynamic", "int8-fp16")


def graph_record(**changes: object) -> dict[str, object]:
    values = {
        "opset": 18,
        "inputs": {"image": {"dtype": "float32", "shape": ["batch", 3, *SIZE]}},
        "outputs": {"logits": {"dtype": "float32", "shape": ["batch", len(LABELS)]}},
    }
    return {**values, **changes}


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as on an x86 CPU, whatever this is."""
    monkeypatch.setattr(devices, "has_x86_vectors", lambda: True)


@pytest.mark.usefixtures("x86")
@pytest.mark.parametrize("precision", INT8)
def test_a_cpu_without_vnni_warns_of_eight_bit_weights(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    path = make_bundle(precision=precision, graph=graph_record(precision={"reduce_range": False}))
    monkeypatch.setattr(devices, "cpu_flags", lambda: NO_VNNI)

    with pytest.warns(CalipsoWarning, match=r"8-bit weights, which this CPU \(no VNNI\) .* --reduce-range"):
        calipso_runtime.load(path, backend="ort").close()


@pytest.mark.parametrize(
    ("precision", "reduced", "flags", "is_x86"),
    [
        ("int8", True, NO_VNNI, True),
        ("int8", False, VNNI, True),
        ("int8", False, "avx2 avx_vnni", True),
        ("int8", False, "", False),
        ("fp32", False, NO_VNNI, True),
        ("fp16", False, NO_VNNI, True),
        ("fp8", False, NO_VNNI, True),
    ],
)
def test_what_cannot_saturate_is_not_warned_of(
    *,
    make_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    reduced: bool,
    flags: str,
    is_x86: bool,
) -> None:
    path = make_bundle(precision=precision, graph=graph_record(precision={"reduce_range": reduced}))
    monkeypatch.setattr(devices, "cpu_flags", lambda: flags)
    monkeypatch.setattr(devices, "has_x86_vectors", lambda: is_x86)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calipso_runtime.load(path, backend="ort").close()


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
