"""Execution providers that ONNX Runtime loads from packages: registered once, and never replaced by the CPU.

What they answer is held to numpy in test_backend_contract.py, on the device of the built-in CPU provider.
"""

import shutil
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from bound_on_cpu import PluginOnCpu
from click.testing import CliRunner

import calipso_runtime
from calipso_runtime import backends, devices
from calipso_runtime.backends import ort
from calipso_runtime.backends.ort_plugin import OrtPluginBackend, RtxPlugin, WebGpuPlugin
from calipso_runtime.bundle import open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.devices import CudaDriver
from calipso_runtime.errors import BackendError, BackendUnavailableError, BundleCorruptError, UsageError

pytestmark = pytest.mark.skipif(not ort.takes_plugins(), reason="onnxruntime 1.23 is the first with plug-ins")
PACKAGE, PROVIDER = "onnxruntime_ep_own", "OwnExecutionProvider"
NOWHERE = "ort-plugin:nowhere"


class StrictOnCpu(PluginOnCpu):
    """Must not use the CPU, and has nothing else."""

    settings = OrtPluginBackend.settings


class OwnPlugin(OrtPluginBackend):
    """Of a package that the tests make up."""

    name = "ort-plugin:own"
    wanted_provider = PROVIDER
    module = PACKAGE


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The package is installed, and its library need not exist. Returns what onnxruntime was told to load."""
    calls: list[tuple[str, str]] = []
    install(monkeypatch, library="own.so")
    monkeypatch.setattr(ort.onnxruntime, "register_execution_provider_library", lambda *each: calls.append(each))
    return calls


def install(monkeypatch: pytest.MonkeyPatch, *, library: str) -> None:
    """Put a package of a plug-in where Python finds it; onnxruntime has not loaded its library yet."""
    package = types.ModuleType(PACKAGE)
    package.get_library_path = lambda: library  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    monkeypatch.setattr(ort, "_registered", ort._registered - {PROVIDER})


def test_a_plug_in_must_not_leave_the_graph_to_the_cpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StrictOnCpu, "why_unavailable", lambda _: None)

    with pytest.raises(BackendError, match="CPU EP") as raised:
        StrictOnCpu(open_bundle(tiny))

    assert not isinstance(raised.value, BackendUnavailableError)


def test_a_provider_that_runs_no_graph_is_not_available() -> None:
    assert "CPU EP" in str(StrictOnCpu.why_unavailable())


def test_a_graph_that_no_provider_can_read_is_damaged(tiny: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny, tmp_path / "own"))
    bundle = open_bundle(own)
    (own / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(BundleCorruptError):
        PluginOnCpu(bundle)


def test_a_library_is_registered_once_in_a_process(registered: list[tuple[str, str]]) -> None:
    for _ in range(2):
        OwnPlugin.why_unavailable()

    assert registered == [(PROVIDER, "own.so")]


def test_a_provider_that_the_application_registered_is_used_without_its_package(
    registered: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)

    assert PluginOnCpu.why_unavailable() is None
    assert registered == []


@pytest.mark.usefixtures("registered")
def test_a_provider_without_a_device_is_refused(tiny: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=PROVIDER):
        OwnPlugin(open_bundle(tiny))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)

    assert "pip install onnxruntime-ep-own" in str(OwnPlugin.why_unavailable())


def test_a_library_that_does_not_load_is_refused_in_onnxruntimes_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "own.so"
    library.write_bytes(b"no library")
    install(monkeypatch, library=str(library))

    assert str(library) in str(OwnPlugin.why_unavailable())
    assert PROVIDER not in ort._registered


def test_the_driver_is_asked_before_nvidias_package_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_driver", lambda: CudaDriver(problem="no NVIDIA driver"))
    monkeypatch.setitem(sys.modules, RtxPlugin.module, None)

    assert "no NVIDIA driver" in str(RtxPlugin.why_unavailable())


def test_an_onnxruntime_without_plug_ins_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "takes_plugins", lambda: False)

    assert "1.23" in str(OwnPlugin.why_unavailable())


def test_auto_takes_no_plug_in() -> None:
    assert not set(backends.AUTO_ORDER) & set(backends.PLUGINS)


def test_an_unknown_plug_in_is_refused_with_those_that_there_are(tiny: Path) -> None:
    with pytest.raises(UsageError, match="ort-plugin:tensorrt-rtx"):
        calipso_runtime.load(tiny, backend=NOWHERE)

    assert CliRunner().invoke(calipso, ["check", str(tiny), "--backend", NOWHERE]).exit_code == 2


@pytest.mark.parametrize("name", backends.PLUGINS)
def test_a_plug_in_that_is_not_here_ends_the_command_and_never_answers_on_the_cpu(name: str, tiny: Path) -> None:
    if backends.why_unavailable(name) is None:
        pytest.skip(f"{name} works on this machine")

    with pytest.raises(BackendUnavailableError):
        calipso_runtime.load(tiny, backend=name)


def test_the_real_library_of_webgpu_registers() -> None:
    pytest.importorskip("onnxruntime_ep_webgpu", reason="the smallest real plug-in: pip install onnxruntime-ep-webgpu")

    reason = str(WebGpuPlugin.why_unavailable())

    assert "cannot be imported" not in reason
    assert "cannot load" not in reason


def test_kernels_of_tensorrt_for_rtx_are_kept_in_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("CALIPSO_CACHE", str(tmp_path))
    backend, bundle = object.__new__(RtxPlugin), open_bundle(tiny)

    kept = Path(backend._options(bundle, keep=True)["nv_runtime_cache_path"])

    assert kept.is_dir()
    assert tmp_path in kept.parents
    assert backend._options(bundle, keep=False) == {}
