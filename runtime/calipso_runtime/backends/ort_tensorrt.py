"""ONNX Runtime's TensorRT provider: it builds engines for parts of the graph, which takes minutes, and keeps them.

The provider of onnxruntime 1.31.1 creates weakly typed networks and has no option for another (docs/gpu.md): without
a flag an fp16 graph would be computed in fp32, with it TensorRT is free to lower what the graph keeps in fp32. So the
flags are those of the bundle's own precision, and `calipso verify --backend ort-tensorrt` is what tells.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calipso_runtime import devices
from calipso_runtime.backends.ort import TENSORRT_PROVIDER, Ask, OrtBackend, Session, metadata_of, open_session, version
from calipso_runtime.backends.ort_binding import BoundSession
from calipso_runtime.bundle import Bundle
from calipso_runtime.caching import cache_folder
from calipso_runtime.errors import BackendError, BackendUnavailableError
from calipso_runtime.graph_file import METADATA_MANIFEST, embedded_manifest
from calipso_runtime.manifest import Manifest, manifest_of_metadata

# Of the one optimisation profile: smallest, the one that kernels are chosen for, and largest batch.
PROFILE = (1, 8, 256)
# By precision of the bundle. A flag on a graph that is not of its type would change what is computed.
FLAGS: Mapping[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("trt_fp16_enable",),
    "bf16": ("trt_bf16_enable",),
    "int8": ("trt_int8_enable",),
    "int8-fp16": ("trt_int8_enable", "trt_fp16_enable"),
}


class OrtTensorRtBackend(OrtBackend):
    """The portable graph in TensorRT engines; nodes that TensorRT does not take run on CUDA.

    Attributes:
        device: where inputs are put.
    """

    name = "ort-tensorrt"
    wanted_provider = TENSORRT_PROVIDER
    device = "cuda"

    def _open(self, model_path: Path, bundle: Bundle, *, keep: bool) -> tuple[Session, Mapping[str, str]]:
        """With engines that an earlier process built where they are; else they are built now, and kept."""
        settings = settings_of(
            bundle.manifest
            or manifest_of_metadata({METADATA_MANIFEST: embedded_manifest(model_path)}, source=str(model_path))
        )
        if keep:
            settings |= kept_in(cache_folder() / self.name, bundle.digest)
        session = open_session(str(model_path), self.wanted_provider, threads=self._threads, settings=settings)
        return session, metadata_of(session)

    def _asker(self, session: Session, held: Mapping[str, npt.NDArray[np.generic]]) -> Ask:
        del held  # a head has no profile: it is not taken
        return BoundSession(session, self.device).run

    def run(self, image: npt.NDArray[np.floating], outputs: Sequence[str]) -> dict[str, npt.NDArray[np.floating]]:
        """Answer a batch; one that is larger than the engines take in parts, or not at all: see `GpuOptions`."""
        if len(image) > PROFILE[-1] and self._gpu.oversize == "refuse":
            message = f"a batch of {len(image)} is larger than the engines take ({PROFILE[-1]}): give smaller ones"
            raise BackendError(message)
        return super().run(image, outputs)

    def _most_pictures(self) -> int | None:
        """As many as the engines are built for."""
        return PROFILE[-1]


def settings_of(manifest: Manifest) -> dict[str, str]:
    """The provider's options for a bundle: its precision, and batches of `PROFILE`.

    Raises:
        BackendUnavailableError: its precision has no flags.
    """
    if manifest.precision not in FLAGS:
        message = (
            f"ort-tensorrt cannot run precision {manifest.precision}: expected one of {', '.join(FLAGS)}. "
            "Take another backend"
        )
        raise BackendUnavailableError(message)
    item = "x".join(map(str, manifest.input_shape))
    names = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
    shapes = {name: f"{manifest.input_name}:{batch}x{item}" for name, batch in zip(names, PROFILE, strict=True)}
    return {**dict.fromkeys(FLAGS[manifest.precision], "True"), **shapes}


def kept_in(folder: Path, digest: str) -> dict[str, str]:
    """The provider's options to keep engines and timings.

    Engines are executable code: they are read from the user's own cache folder alone, and those of a bundle, of a
    version of onnxruntime and of a GPU with its driver lie in a folder of their own.

    Args:
        folder: for all bundles.
        digest: of the bundle.
    """
    driver = devices.cuda_driver()
    parts = (digest, version(), str(driver.version), *driver.devices, repr(PROFILE))
    engines = folder / hashlib.sha256("\n".join(parts).encode()).hexdigest()
    timings = folder / "timings"
    for each in (engines, timings):
        each.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(timings),
    }
