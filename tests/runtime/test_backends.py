"""Which engine is taken, and that it is really the one in use."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from make_identity_model import identity_model
from runtime_samples import LABELS, reference_logits

import calipso_runtime
from calipso_runtime import backends, devices
from calipso_runtime.backends import ort, ort_cuda
from calipso_runtime.bundle import Bundle
from calipso_runtime.devices import CudaDriver
from calipso_runtime.errors import BackendError, BackendUnavailableError, BundleCorruptError, UsageError


def bare(path: Path) -> Bundle:
    """A graph without a bundle around it, unchecked."""
    return Bundle(path=path, model_path=path, manifest=None, digest="unchecked")


GPU = CudaDriver(version="12.8", devices=("a GPU",))


def pretend_gpu_build(monkeypatch: pytest.MonkeyPatch, *, falls_back: bool, driver: CudaDriver = GPU) -> list[object]:
    """Make onnxruntime look like onnxruntime-gpu, computing on the CPU in fact. Returns the providers asked for."""
    real, asked = ort.onnxruntime.InferenceSession, []

    class Session:
        def __init__(self, model: object, options: object, *, providers: list[tuple[str, dict]], **_: object) -> None:
            asked.append(providers)
            self.names = [name for name, _ in providers]
            if falls_back:
                self.names = [name for name in self.names if name == ort.CPU_PROVIDER]
            self.session = real(model, options, providers=[ort.CPU_PROVIDER])

        def get_providers(self) -> list[str]:
            return self.names

        def __getattr__(self, name: str) -> object:
            return getattr(self.session, name)

    listed = [ort.CUDA_PROVIDER, ort.CPU_PROVIDER]
    monkeypatch.setattr(ort.onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(devices, "cuda_driver", lambda: driver)
    # These call the driver, which is only pretended here.
    others = [name for name in backends.AUTO_ORDER if name not in ("tensorrt", "tensorrt-rtx")]
    monkeypatch.setattr(backends, "AUTO_ORDER", tuple(others))
    return asked


def test_every_backend_in_the_table_can_be_chosen() -> None:
    assert [backends.choose(name).candidates for name in backends.ALL_BACKENDS] == [
        (name,) for name in backends.ALL_BACKENDS
    ]
    assert set(backends.BACKENDS) == {"tensorrt", "tensorrt-rtx", "ort", "ort-cuda", "ort-tensorrt", "openvino"}
    assert backends.choose("auto").candidates == ("tensorrt", "tensorrt-rtx", "ort-cuda", "ort", "openvino")
    assert backends.choose("ort").reason == "ort was asked for"


def test_an_unknown_backend_is_refused_with_the_names_there_are(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"'tensorflow' is unknown: expected auto, .*ort-cuda, ort-tensorrt, openvino"):
        calipso_runtime.load(tiny, backend="tensorflow")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_below_one_are_refused(tiny: Path, threads: object) -> None:
    with pytest.raises(UsageError, match="threads is"):
        calipso_runtime.load(tiny, threads=threads)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads_do_not_change_the_answer(tiny: Path, threads: int | None) -> None:
    tensors = np.random.default_rng(0).uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32)

    logits = calipso_runtime.load(tiny, threads=threads).logits(tensors)

    np.testing.assert_allclose(logits, reference_logits(tensors), rtol=1e-4, atol=1e-4)


def test_cuda_asked_for_on_a_cpu_build_is_refused(tiny: Path) -> None:
    if ort.CUDA_PROVIDER in ort.listed_providers():
        pytest.skip("this onnxruntime has CUDA")

    with pytest.raises(BackendUnavailableError, match=r"was built without CUDAExecutionProvider; it has .*CPU"):
        calipso_runtime.load(tiny, backend="ort-cuda")


def test_auto_says_why_it_is_the_cpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: [ort.CPU_PROVIDER])

    classifier = calipso_runtime.load(tiny)

    assert (classifier.backend, classifier.provider) == ("ort", "CPUExecutionProvider")
    assert "ort runs model.onnx on CPUExecutionProvider; " in classifier.backend_reason
    assert "; ort-cuda is not available: onnxruntime" in classifier.backend_reason


def test_cuda_that_fell_back_is_refused_when_asked_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu_build(monkeypatch, falls_back=True)

    with pytest.raises(BackendUnavailableError, match="fell back to CPUExecutionProvider"):
        calipso_runtime.load(tiny, backend="ort-cuda")


def test_auto_takes_the_cpu_when_cuda_fell_back_and_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu_build(monkeypatch, falls_back=True)

    classifier = calipso_runtime.load(tiny)

    assert (classifier.backend, classifier.provider) == ("ort", "CPUExecutionProvider")
    assert "CUDAExecutionProvider does not come up" in classifier.backend_reason


def test_auto_takes_cuda_when_a_session_has_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend_gpu_build(monkeypatch, falls_back=False)
    monkeypatch.setattr(ort_cuda, "FIRST_WITH_GRAPHS", (1, 0))

    classifier = calipso_runtime.load(tiny)

    assert (classifier.backend, classifier.provider) == ("ort-cuda", "CUDAExecutionProvider")
    settings = {"use_tf32": "0", "enable_cuda_graph": "1"}
    assert asked[-1] == [("CUDAExecutionProvider", settings), ("CPUExecutionProvider", {})]


def test_a_fall_back_of_the_real_graph_alone_is_noticed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu_build(monkeypatch, falls_back=True)
    monkeypatch.setattr(ort, "why_unavailable", lambda _: None)

    with pytest.raises(BackendUnavailableError, match="fell back to CPUExecutionProvider"):
        calipso_runtime.load(tiny, backend="ort-cuda")


def test_cuda_is_not_even_tried_without_a_driver(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend_gpu_build(monkeypatch, falls_back=False, driver=CudaDriver(problem="no NVIDIA driver"))

    classifier = calipso_runtime.load(tiny)

    assert "ort-cuda is not available: CUDAExecutionProvider needs a CUDA device: no NVIDIA driver" in (
        classifier.backend_reason
    )
    assert all("CUDA" not in name for providers in asked for name, _ in providers)


def test_no_backend_at_all_tells_the_reason_of_each(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "why_unavailable", lambda provider: f"{provider} is broken")

    monkeypatch.setattr(backends, "AUTO_ORDER", ("ort-cuda", "ort"))

    with pytest.raises(BackendUnavailableError, match=r"ort-cuda is not available: .*; ort is not available: "):
        calipso_runtime.load(tiny)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_a_truncated_graph_is_corrupt_even_if_no_hash_told(tiny: Path, tmp_path: Path, share: float) -> None:
    content = (tiny / "model.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(BundleCorruptError, match=r"cut\.onnx is not a graph"):
        ort.OrtCpuBackend(bare(path))


def test_a_failing_run_is_a_backend_error(tiny: Path) -> None:
    backend = ort.OrtCpuBackend(bare(tiny / "model.onnx"))

    with pytest.raises(BackendError, match=r"ort failed on a batch of shape \[1, 3, 8, 8\]") as caught:
        backend.run(np.zeros((1, 3, 8, 8), np.float32), ["logits"])
    assert caught.value.__cause__ is not None


def test_a_closed_backend_says_so_and_closes_twice(tiny: Path) -> None:
    with calipso_runtime.load(tiny) as classifier:
        classifier.close()

    with pytest.raises(BackendError, match="is closed: load the bundle again"):
        classifier.logits(np.zeros((16, 16, 3), np.uint8))


def test_a_backend_tells_its_graph(tiny: Path) -> None:
    backend = ort.OrtCpuBackend(bare(tiny / "model.onnx"))

    assert [(info.name, info.shape, info.dtype) for info in (*backend.inputs, *backend.outputs)] == [
        ("image", (None, 3, 16, 16), "float32"),
        ("logits", (None, len(LABELS)), "float32"),
        ("embedding", (None, 5), "float32"),
    ]
    assert set(backend.metadata) == {"calipso.manifest", "calipso.sha256"}


def test_the_probe_is_what_its_script_writes() -> None:
    assert identity_model() == ort.IDENTITY_MODEL
    assert len(ort.IDENTITY_MODEL) < 300


def test_a_driver_that_does_not_start_is_told_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    devices.cuda_driver.cache_clear()
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _: SimpleNamespace(cuInit=lambda _: 100))

    assert devices.cuda_driver() == CudaDriver(problem="NVIDIA's driver does not start (cuInit answers 100)")
    devices.cuda_driver.cache_clear()


def test_a_driver_tells_its_version_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(pointer: object, value: int) -> int:
        pointer._obj.value = value
        return 0

    def put_name(buffer: object, size: int, device: object) -> int:
        buffer.value = b"a GPU"
        return 0

    library = SimpleNamespace(
        cuInit=lambda _: 0,
        cuDriverGetVersion=lambda pointer: put(pointer, 12080),
        cuDeviceGetCount=lambda pointer: put(pointer, 2),
        cuDeviceGet=put,
        cuDeviceGetName=put_name,
    )
    devices.cuda_driver.cache_clear()
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _: library)

    assert devices.cuda_driver() == CudaDriver(version="12.8", devices=("a GPU", "a GPU"))
    devices.cuda_driver.cache_clear()
