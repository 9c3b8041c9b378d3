"""Execution providers that ONNX Runtime loads from packages: registered once, and never replaced by the CPU.

No machine of the tests has a device of one: sessions are those of the built-in CPU provider, opened as a plug-in's.
"""

import shutil
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from click.testing import CliRunner
from runtime_samples import reference_logits

import calipso_runtime
from calipso_runtime import backends
from calipso_runtime.backends import ort, ort_plugin
from calipso_runtime.backends.ort_plugin import OrtPluginBackend, RtxPlugin, WebGpuPlugin
from calipso_runtime.bundle import open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.errors import BackendError, BackendUnavailableError, BundleCorruptError, UsageError

pytestmark = pytest.mark.skipif(not ort.takes_plugins(), reason="onnxruntime 1.23 is the first with plug-ins")
PACKAGE = "onnxruntime_ep_own"
NOWHERE = "ort-plugin:nowhere"


class OwnPlugin(OrtPluginBackend):
    """A plug-in of the package of the tests, whose devices are those of the built-in CPU provider."""

    name = "ort-plugin:own"
    module = PACKAGE
    settings: ClassVar[Mapping[str, str]] = {}


class StrictPlugin(OwnPlugin):
    settings = OrtPluginBackend.settings


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    """Each test begins as a process does, for the package that it makes up."""
    yield
    ort_plugin._registered.pop(PACKAGE, None)


def install(monkeypatch: pytest.MonkeyPatch, *, provider: str, library: str) -> None:
    """Put a package of a plug-in where Python finds it."""
    package = types.ModuleType(PACKAGE)
    package.get_library_path = lambda: library  # type: ignore[attr-defined]
    package.get_ep_name = lambda: provider  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PACKAGE, package)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The package's provider is the CPU's, and its library need not exist; returns what was registered."""
    calls: list[tuple[str, str]] = []
    install(monkeypatch, provider=ort.CPU_PROVIDER, library="own.so")
    monkeypatch.setattr(ort, "register_plugin", lambda name, library: calls.append((name, library)))
    return calls


@pytest.mark.usefixtures("registered")
def test_a_plug_in_answers_as_the_graph_does(tiny: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32)

    backend = OwnPlugin(open_bundle(tiny))

    np.testing.assert_allclose(backend.run(images, ["logits"])["logits"], reference_logits(images), atol=1e-5)
    assert (backend.provider, backend.graph) == (ort.CPU_PROVIDER, "model.onnx")


@pytest.mark.usefixtures("registered")
def test_a_plug_in_must_not_leave_the_graph_to_the_cpu(tiny: Path) -> None:
    with pytest.raises(BackendError, match="CPU EP") as raised:
        StrictPlugin(open_bundle(tiny))

    assert not isinstance(raised.value, BackendUnavailableError)


@pytest.mark.usefixtures("registered")
def test_a_graph_that_no_provider_can_read_is_damaged(tiny: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny, tmp_path / "own"))
    bundle = open_bundle(own)
    (own / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(BundleCorruptError):
        OwnPlugin(bundle)


def test_a_library_is_registered_once_in_a_process(registered: list[tuple[str, str]], tiny: Path) -> None:
    for _ in range(2):
        OwnPlugin(open_bundle(tiny))

    assert registered == [(PACKAGE, "own.so")]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)

    reason = OwnPlugin.why_unavailable()

    assert reason is not None
    assert "pip install onnxruntime-ep-own" in reason


def test_a_library_that_does_not_load_is_refused_in_onnxruntimes_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "own.so"
    library.write_bytes(b"no library")
    install(monkeypatch, provider="OwnExecutionProvider", library=str(library))

    reason = OwnPlugin.why_unavailable()

    assert reason is not None
    assert str(library) in reason
    assert PACKAGE not in ort_plugin._registered


def test_a_provider_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    install(monkeypatch, provider="OwnExecutionProvider", library="own.so")
    monkeypatch.setattr(ort, "register_plugin", lambda *_: None)

    with pytest.raises(BackendUnavailableError, match="OwnExecutionProvider"):
        OwnPlugin(open_bundle(tiny))


def test_an_onnxruntime_without_plug_ins_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "takes_plugins", lambda: False)

    assert "1.23" in str(OwnPlugin.why_unavailable())


@pytest.mark.usefixtures("registered")
def test_auto_takes_no_plug_in_and_load_takes_one_by_its_name(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(backends, "NAMED", {**backends.NAMED, OwnPlugin.name: f"{__name__}:OwnPlugin"})
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or types.SimpleNamespace(OwnPlugin=OwnPlugin))

    assert not set(backends.AUTO_ORDER) & set(backends.PLUGINS)
    with calipso_runtime.load(tiny, backend=OwnPlugin.name) as classifier:
        assert classifier.provider == ort.CPU_PROVIDER
        assert OwnPlugin.name in classifier.backend_reason


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
    pytest.importorskip("onnxruntime_ep_webgpu")

    reason = WebGpuPlugin.why_unavailable()

    assert reason is None or "finds no device" in reason
    assert ort_plugin._registered[WebGpuPlugin.module] == "WebGpuExecutionProvider"


def test_kernels_of_tensorrt_for_rtx_are_kept_in_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("CALIPSO_CACHE", str(tmp_path))
    backend, bundle = object.__new__(RtxPlugin), open_bundle(tiny)

    kept = Path(backend._options(bundle, keep=True)["nv_runtime_cache_path"])

    assert kept.is_dir()
    assert tmp_path in kept.parents
    assert backend._options(bundle, keep=False) == {}
