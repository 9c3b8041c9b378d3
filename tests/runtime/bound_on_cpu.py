"""The GPU's backends and plug-ins on the CPU's provider: the same code, with memory of the host as the device's."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest

from calipso_runtime import backends
from calipso_runtime.backends import ort, ort_binding, ort_cuda
from calipso_runtime.backends.ort import CPU_PROVIDER
from calipso_runtime.backends.ort_cuda import OrtCudaBackend
from calipso_runtime.backends.ort_plugin import OrtPluginBackend


class GraphsOnCpu(OrtCudaBackend):
    """Goes through the capture of every shape; the CPU's provider takes the id of a graph and computes as ever."""

    name = "graphs-on-cpu"
    wanted_provider = CPU_PROVIDER
    device = "cpu"


class BoundOnCpu(GraphsOnCpu):
    """IO binding alone."""

    name = "bound-on-cpu"

    def _asker(self, session: ort.Session, held: Mapping[str, np.ndarray]) -> ort.Ask:
        self._graphs = False
        return super()._asker(session, held)


class PluginOnCpu(OrtPluginBackend):
    """A session on a device that onnxruntime lists, as a plug-in's is: that of the built-in CPU provider."""

    name = "plugin-on-cpu"
    wanted_provider = CPU_PROVIDER
    module = "onnxruntime_ep_own"
    # A plug-in must not leave nodes to the CPU; here that is what computes.
    settings: ClassVar[Mapping[str, str]] = {}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let them be loaded by name, whatever version of onnxruntime this is."""
    monkeypatch.setattr(ort_cuda, "FIRST_WITH_GRAPHS", (1, 0))
    for kind in (GraphsOnCpu, BoundOnCpu, PluginOnCpu):
        monkeypatch.setitem(backends.ALL_BACKENDS, kind.name, f"{__name__}:{kind.__name__}")


def graphs_of(backend: OrtCudaBackend) -> ort_binding.GraphSession:
    assert isinstance(backend._bound, ort_binding.GraphSession)
    return backend._bound
