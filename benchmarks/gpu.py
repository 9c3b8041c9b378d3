"""How fast fp16 bundles are on a GPU: every backend of it against eager PyTorch and torch.compile in fp16.

    python -m benchmarks.gpu [--models ViT-B-32,ViT-B-16,ViT-L-14,RN50] [--batches 1,8,64,256]

1,000 classes, 16,000 cache keys, CALIP on, random weights. A backend is held to the gates of the bundle before it is
timed. It needs a GPU, a torch and an onnxruntime-gpu that use it. Bundles and unfinished results stay under
build/bench-gpu/: an interrupted run goes on where it stopped. Results go to results/gpu-<device>.json.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import RESULTS, ROOT, keep
from benchmarks.full_size import inputs
from calipso_bench.config import BenchConfig
from calipso_bench.environment import commit
from calipso_bench.run import run
from calipso_export import ExportConfig, export
from calipso_export.progress import Progress
from calipso_export.reverify import reverify
from calipso_runtime import backends, devices
from calipso_runtime.commands.progress_bars import progress_bars
from calipso_runtime.engines.build import build
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.errors import BackendUnavailableError, CalipsoError, EngineBuildError

WORK = ROOT / "build" / "bench-gpu"
MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50")
BATCHES = (1, 8, 64, 256)
AGAINST = ("eager-fp16", "compile-fp16")
# Those of the runtime's table that compute on a GPU.
BACKENDS = tuple(name for name in backends.BACKENDS if name in ("tensorrt", "ort-cuda", "ort-tensorrt"))
PRECISION = "fp16"
SECONDS = 5.0
KIND = "calipso-bench-gpu"
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main() -> int:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    arguments = parser.parse_args()
    batches = tuple(int(size) for size in arguments.batches.split(","))
    try:
        device, usable = examine()
        with progress_bars(Console(stderr=True)) as progress:
            path = measure_all(arguments.models.split(","), batches, device, usable, progress)
    except CalipsoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept, and the same command goes on", file=sys.stderr)
        return _INTERRUPTED
    print(f"wrote {path.name}")
    return 0


def examine() -> tuple[str, tuple[str, ...]]:
    """The GPU's name, and the backends that come up on it.

    Raises:
        BackendUnavailableError: there is no GPU, torch does not use it, or no backend comes up.
    """
    driver = devices.cuda_driver()
    if driver.problem is not None:
        message = f"there is no GPU to measure: {driver.problem}"
        raise BackendUnavailableError(message)
    import torch

    if not torch.cuda.is_available():
        message = f"torch {torch.__version__} sees no CUDA device to compare with: install its CUDA build"
        raise BackendUnavailableError(message)
    problems = {name: backends.why_unavailable(name) for name in BACKENDS}
    usable = tuple(name for name, problem in problems.items() if problem is None)
    if not usable:
        message = "no backend comes up on this GPU: " + "; ".join(f"{name}: {why}" for name, why in problems.items())
        raise BackendUnavailableError(message)
    return driver.devices[0], usable


def measure_all(
    models: list[str], batches: tuple[int, ...], device: str, usable: tuple[str, ...], progress: Progress
) -> Path:
    """Every model; the results are written when all is there, for a changed file would be another commit's."""
    begin()
    documents = []
    for place, model in enumerate(models):
        progress("models", place, len(models))
        documents.append(measure(model, batches, usable, progress))
    progress("models", len(models), len(models))
    path = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    keep(path, {"schema_version": 1, "kind": KIND, "device": device, "models": documents})
    shutil.rmtree(WORK)
    return path


def begin() -> None:
    """Throw away what an interrupted run of other code left."""
    mark, now = WORK / "commit", str(commit())
    if not mark.is_file() or mark.read_text(encoding="ascii") != now:
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    mark.write_text(now, encoding="ascii")


def measure(model: str, batches: tuple[int, ...], usable: tuple[str, ...], progress: Progress) -> dict[str, Any]:
    """One model: its bundle, its gates on every backend, and latency and throughput of those that pass.

    Raises:
        BackendUnavailableError: no backend passes.
    """
    folder = WORK / model
    bundle = made_bundle(model, folder, progress)
    gates = {name: gate(bundle, name, batches, folder, progress) for name in usable}
    passing = tuple(name for name in usable if not gates[name]["failures"])
    if not passing:
        message = f"{model}: no backend passes the gates of its bundle: " + "; ".join(
            f"{name}: {', '.join(gates[name]['failures'])}" for name in usable
        )
        raise BackendUnavailableError(message)
    config = BenchConfig(
        bundle=bundle,
        against=AGAINST,
        backends=passing,
        batches=batches,
        threads=(1,),
        stages=("classify",),
        scenarios=("latency", "throughput"),
        seconds=SECONDS,
        json=WORK / f"{model}.json",
    )
    return {"gates": gates, **run(config, progress)}


def made_bundle(model: str, folder: Path, progress: Progress) -> Path:
    """Export, unless an earlier run did so with the same code; random weights may fail an export's own gates."""
    bundle = folder / f"{model}.calipso"
    if not (bundle / "manifest.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        settings = {**inputs(model, folder), "precision": PRECISION, "repair_minutes": 0, "force": True}
        export(ExportConfig(**{**settings, "output": bundle}), progress)
    return bundle


def gate(bundle: Path, backend: str, batches: tuple[int, ...], folder: Path, progress: Progress) -> dict[str, Any]:
    """What the backend's answers are off from eager PyTorch's by, and which gates they fail; kept for the next run."""
    kept = folder / f"gates-{backend}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(gated(bundle, backend, batches, folder, progress)), encoding="utf-8")
    document: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return document


def gated(bundle: Path, backend: str, batches: tuple[int, ...], folder: Path, progress: Progress) -> dict[str, Any]:
    """The same, measured; TensorRT's engine is built first, with a profile for each batch."""
    if backend == "tensorrt":
        profiles = tuple(BatchRange(least=size, best=size, most=size) for size in batches)
        try:
            build(bundle, BuildOptions(profiles=profiles), report=progress)
        except EngineBuildError as error:
            return {"worst": {}, "failures": [str(error)]}
    parity = reverify(bundle, data=folder / "pictures", checkpoint=None, model=None, backend=backend, progress=progress)
    return {"worst": parity.document["worst"], "failures": list(parity.failures)}


if __name__ == "__main__":
    sys.exit(main())
