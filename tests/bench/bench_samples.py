"""A contender made of numpy, pictures and a bundle without torch, that the tests of the benchmarks share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import runtime_samples

from calipso_bench.config import BenchConfig
from calipso_bench.pictures import Pictures, gather
from calipso_bench.record import Record, begin
from calipso_runtime import bundle, graph_file
from calipso_runtime.manifest import write_manifest

Float32 = npt.NDArray[np.float32]
# What the machine is said to be able to do.
PEAKS = {"matmul_gflops": 100.0, "matmul_by_engine": {"numpy": 100.0}, "read_gb_s": 10.0, "copy_gb_s": 10.0}
ABOUT = {
    "calipso": "1",
    "commit": None,
    "bundle": {"sha256": "0123"},
    "config": {"seconds": 1.0},
    "pictures": {"source": "made-up", "sha256": "4567", "count": 16},
    "environment": {"cpu": "a CPU", "cores": 2, "system": "Linux", "python": "3", "packages": {}, "threads": {}},
}


def write_bundle(folder: Path, **changes: object) -> Path:
    """A real bundle of seven classes whose graph is average pooling and two matrices."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / graph_file.MODEL_FILE
    runtime_samples.write_model(model, runtime_samples.tiny_manifest(**changes))
    files = {graph_file.MODEL_FILE: bundle.file_entry(model)}
    manifest = runtime_samples.tiny_manifest(**{"parity": "passed", **changes, "files": files})
    write_manifest(folder / bundle.MANIFEST_FILE, manifest)
    return folder


def made_up_pictures(count: int = 8) -> Pictures:
    """Small enough for the tiny graph, and few."""
    return gather(None, count, runtime_samples.CONFIG, seed=0)


def new_record(path: Path | None = None, **changes: Any) -> Record:
    return begin({**ABOUT, **changes}, path, overwrite=False)


def config(bundle: Path, **changes: Any) -> BenchConfig:
    """A run of some tenths of a second, without rivals."""
    values = {"against": (), "batches": (1,), "threads": (1,), "stages": ("classify",), "seconds": 0.05}
    return BenchConfig(bundle=bundle, **{**values, **changes})


def read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


class NumpyContender:
    """Answers like the tiny graph, and off by what it is told to be."""

    about = "numpy"
    device = "cpu"
    weights_bytes = 1

    def __init__(self, name: str = "eager", *, exact: bool = True, off: float = 0.0) -> None:
        self.name = name
        self.exact = exact
        self.off = off
        self.asked = 0

    def encode(self, images: Float32) -> Float32:
        self.asked += 1
        return self.classify(images)[:, : runtime_samples.EMBED_DIM]

    def classify(self, images: Float32) -> Float32:
        self.asked += 1
        logits = runtime_samples.reference_logits(images)
        logits[:, 0] += self.off
        return logits

    def answer(self, pictures: Sequence[bytes], top: int) -> list[list[int]]:
        self.asked += 1
        from calipso_bench.contenders.numpy_ends import best, preprocessed

        return best(self.classify(preprocessed(pictures, runtime_samples.CONFIG)), top)

    def device_ms(self) -> float | None:
        return None

    def close(self) -> None:
        return None
