"""ONNX Runtime with an execution provider out of a package of its own, which is registered when it is first used.

ONNX Runtime computes on the CPU, with no more than a warning, where such a provider is not there or does not take a
node. Here that is an error.

A further plug-in is a class of three lines, and one line in `backends.PLUGINS`.
"""

import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import ort
from calipso_runtime.backends.ort import (
    CPU_PROVIDER,
    ORT_ERRORS,
    OrtBackend,
    Session,
    metadata_of,
    open_session,
    session_options,
    version,
)
from calipso_runtime.bundle import Bundle
from calipso_runtime.caching import cache_folder
from calipso_runtime.errors import BackendError

if TYPE_CHECKING:
    from typing import Self

_ONLY_IT = "session.disable_cpu_ep_fallback"
_registering = threading.Lock()
# By module: the name of its provider. A library can be registered only once in a process.
_registered: dict[str, str] = {}


class OrtPluginBackend(OrtBackend):
    """The portable graph on a provider that ONNX Runtime loads from a library: all of the graph, or an error.

    Attributes:
        module: of the package, with `get_library_path` and `get_ep_name`.
        settings: of the session.
    """

    module: ClassVar[str]
    settings: ClassVar[Mapping[str, str]] = {_ONLY_IT: "1"}

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None if the provider is registered and has a device, else the reason in words."""
        if not ort.takes_plugins():
            return f"onnxruntime {version()} loads no providers from packages: 1.23 is the first that does"
        try:
            provider = cls._provider()
        except ImportError as error:
            package = cls.module.replace("_", "-")
            return f"the package {package} cannot be imported ({error}): pip install {package}"
        except ORT_ERRORS as error:
            return f"onnxruntime {version()} cannot load the provider of {cls.module}: {error}"
        if not ort.plugin_devices(provider):
            return f"{provider} finds no device on this machine that it computes on"
        cls.wanted_provider = provider
        return None

    @classmethod
    def _provider(cls) -> str:
        """Register the library, if that was not done before in this process, and return the provider's name."""
        with _registering:
            if cls.module not in _registered:
                package = importlib.import_module(cls.module)
                ort.register_plugin(cls.module, package.get_library_path())
                _registered[cls.module] = package.get_ep_name()
            return _registered[cls.module]

    def _open(self, model_path: Path, bundle: Bundle, *, keep: bool) -> tuple[Session, Mapping[str, str]]:
        """On the first device of the provider, a GPU where it has one."""
        options = session_options(self._threads)
        for name, value in self.settings.items():
            options.add_session_config_entry(name, value)
        own = self._options(bundle, keep=keep)
        options.add_provider_for_devices(ort.plugin_devices(self.wanted_provider)[:1], own)
        try:
            session = Session(str(model_path), options, enable_fallback=0)
        except ORT_ERRORS as error:
            # Where the graph itself is at fault, this says so.
            open_session(str(model_path), CPU_PROVIDER, threads=self._threads)
            message = (
                f"{self.wanted_provider} does not take the whole graph of {model_path}, and the CPU must not compute "
                f"the rest in silence. Take another backend, or export another --precision. onnxruntime says: {error}"
            )
            raise BackendError(message) from error
        return session, metadata_of(session)

    def _options(self, bundle: Bundle, *, keep: bool) -> dict[str, str]:
        """Return the provider's own options."""
        del bundle, keep
        return {}

    def bind(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> "Self":
        """See `HeadBackend.bind`."""
        return self._holding(arrays)


class RtxPlugin(OrtPluginBackend):
    """TensorRT for RTX as ONNX Runtime's provider; the kernels that it compiles are kept in the cache folder."""

    name = "ort-plugin:tensorrt-rtx"
    module = "onnxruntime_ep_nv_tensorrt_rtx"

    def _options(self, bundle: Bundle, *, keep: bool) -> dict[str, str]:
        if not keep:
            return {}
        # Kernels are executable code: only the user's own folder is read.
        folder = cache_folder() / "ort-plugin-tensorrt-rtx" / bundle.digest
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {"nv_runtime_cache_path": str(folder)}


class WebGpuPlugin(OrtPluginBackend):
    """WebGPU as ONNX Runtime's provider: GPUs of any maker, through Vulkan, Metal or Direct3D."""

    name = "ort-plugin:webgpu"
    module = "onnxruntime_ep_webgpu"


class OpenVinoPlugin(OrtPluginBackend):
    """OpenVINO as ONNX Runtime's provider, on Intel's CPUs, GPUs and NPUs."""

    name = "ort-plugin:openvino"
    module = "onnxruntime_ep_openvino"
