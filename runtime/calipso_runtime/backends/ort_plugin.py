"""ONNX Runtime with an execution provider out of a package of its own, which is registered when it is first used.

ONNX Runtime computes on the CPU, with no more than a warning, where such a provider is not there or does not take a
node. Here that is an error.

A further plug-in is a class of three lines, and one line in `backends.PLUGINS`.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import ort
from calipso_runtime.backends.ort import CPU_PROVIDER, IDENTITY_MODEL, ORT_ERRORS, OrtBackend, Session
from calipso_runtime.bundle import Bundle
from calipso_runtime.caching import cache_folder
from calipso_runtime.errors import BackendError

if TYPE_CHECKING:
    from typing import Self

_ONLY_IT = "session.disable_cpu_ep_fallback"


class OrtPluginBackend(OrtBackend):
    """The portable graph on a provider that ONNX Runtime loads from a library: all of the graph, or an error.

    Attributes:
        module: of the package. Its `get_library_path` names the library.
        settings: of the session.
    """

    module: ClassVar[str]
    settings: ClassVar[Mapping[str, str]] = {_ONLY_IT: "1"}

    @classmethod
    def why_unavailable(cls) -> str | None:
        """Return None if a session really runs on the provider, else the reason in words."""
        provider, package = cls.wanted_provider, cls.module.replace("_", "-")
        if not ort.takes_plugins():
            return f"onnxruntime {ort.version()} loads no providers from packages: 1.23 is the first that does"
        # Asked first: NVIDIA's package changes this process when it is imported, and its library needs the driver.
        if (reason := ort.why_no_driver(provider)) is not None:
            return reason
        try:
            # Where devices are listed, the provider is registered: by an earlier call, or by the application.
            if not ort.plugin_devices(provider):
                ort.register_plugin(provider, importlib.import_module(cls.module).get_library_path())
        except ImportError as error:
            return f"the package {package} cannot be imported ({error}): pip install {package}"
        except ORT_ERRORS as error:
            return f"onnxruntime {ort.version()} cannot load {provider} of the package {package}: {error}"
        if not ort.plugin_devices(provider):
            return f"{provider} finds no device on this machine that it computes on"
        return ort.why_it_fails(
            provider, lambda: ort.open_on_plugin(IDENTITY_MODEL, provider, threads=1, session_settings=cls.settings)
        )

    def _open(self, model_path: Path, bundle: Bundle, *, keep: bool) -> tuple[Session, Mapping[str, str]]:
        """On the first device of the provider, a GPU where it has one."""
        try:
            session = ort.open_on_plugin(
                str(model_path),
                self.wanted_provider,
                threads=self._threads,
                session_settings=self.settings,
                settings=self._options(bundle, keep=keep),
            )
        except ORT_ERRORS as error:
            # Where the graph itself is at fault, this says so.
            ort.open_session(str(model_path), CPU_PROVIDER, threads=self._threads)
            message = (
                f"{self.wanted_provider} does not take the whole graph of {model_path}, and the CPU must not compute "
                f"the rest in silence. Take another backend, or export another --precision. onnxruntime says: {error}"
            )
            raise BackendError(message) from error
        return session, ort.metadata_of(session)

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
    wanted_provider = ort.NV_TENSORRT_RTX_PROVIDER
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
    wanted_provider = "WebGpuExecutionProvider"
    module = "onnxruntime_ep_webgpu"


class OpenVinoPlugin(OrtPluginBackend):
    """OpenVINO as ONNX Runtime's provider, on Intel's CPUs, GPUs and NPUs."""

    name = "ort-plugin:openvino"
    wanted_provider = "OpenVINOExecutionProvider"
    module = "onnxruntime_ep_openvino"
