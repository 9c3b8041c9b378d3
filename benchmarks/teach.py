"""What a head that is an input costs, and what teaching takes: ViT-B-32, random weights.

    python -m benchmarks.teach [--seconds 20]

First the same head baked and as an input, in turns: 1,000 classes of 16 keys. Then, by classes and keys, what the
head takes more than one of 2 keys, and how long it takes to teach a class from 5 photos once these are encoded. The
heads are made up, of random directions. Bundles stay under build/teach/; raw samples go to results/teach.json.
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks import RESULTS, ROOT
from benchmarks.full_size import CLASSES, SEED, SHOTS, inputs
from calipso_bench.environment import environment
from calipso_bench.sampling import PAUSE_S
from calipso_bench.stats import median_interval
from calipso_export import ExportConfig, export
from calipso_runtime.backends import Backend, GpuOptions, HeadBackend, connect
from calipso_runtime.bundle import open_bundle
from calipso_runtime.head.classes import Head, head_bytes, new_head
from calipso_runtime.head.journal import Journal
from calipso_runtime.head.teacher import Teacher

WORK = ROOT / "build" / "teach"
MODEL, WIDTH = "ViT-B-32", 512
BACKENDS, BATCHES = ("ort", "openvino"), (1, 8)
# With more, a busy neighbour stalls whichever engine waits for its threads.
THREADS = 1
# Classes and keys per class, as far as MAX_BYTES allows.
SIZES = ((10, 5), (100, 16), (1_000, 16), (1_000, 64), (10_000, 16), (10_000, 40))
PHOTOS, REPEATS = 5, 5
_CALLS_PER_TURN = 3
_MS = 1e3
Float32 = npt.NDArray[np.float32]


def main() -> int:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="Of each comparison in turns.")
    seconds = parser.parse_args().seconds
    baked, as_inputs = (exported(mode) for mode in ("baked", "inputs"))
    document = {
        "schema_version": 1,
        "what": "a head as an input of the graph, and teaching",
        "model": MODEL,
        "weights": f"random, seed {SEED}",
        "threads": THREADS,
        "latency": [
            against_baked(baked, as_inputs, backend, batch, seconds)
            for backend, batch in itertools.product(BACKENDS, BATCHES)
        ],
        "sizes": [size(as_inputs, classes, shots, seconds / 4) for classes, shots in SIZES],
        "environment": environment(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "teach.json"
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


def exported(mode: str) -> Path:
    """Export, unless an earlier run did."""
    bundle = WORK / f"{MODEL}-{mode}.calipso"
    if not (bundle / "manifest.json").is_file():
        with tempfile.TemporaryDirectory() as folder:
            given = {name: value for name, value in inputs(MODEL, Path(folder)).items() if name not in ("b2", "b3")}
            export(ExportConfig(**{**given, "calip": False, "head_mode": mode, "output": bundle}))
    return bundle


def against_baked(baked: Path, as_inputs: Path, backend: str, batch: int, seconds: float) -> dict[str, Any]:
    """Both bundles in turns; how much longer the one with inputs takes."""
    image = images(batch)
    with opened(baked, backend) as first, opened(as_inputs, backend) as second:
        wanted = ("logits",)
        difference = np.abs(first.run(image, wanted)["logits"] - second.run(image, wanted)["logits"]).max()
        samples = in_turns(
            {"baked": lambda: first.run(image, wanted), "inputs": lambda: second.run(image, wanted)}, seconds
        )
    ratios = turns(samples["inputs"]) / turns(samples["baked"])
    low, high = median_interval(ratios.tolist())
    told = f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f}, {len(ratios)} rounds) of the time of baked"
    print(f"{backend}, batch {batch}: {told}; logits differ by {difference:.1e}", flush=True)
    return {
        "backend": backend,
        "batch": batch,
        "classes": CLASSES,
        "shots": SHOTS,
        "largest_logit_difference": float(difference),
        "samples_ms": samples,
    }


def turns(samples: Sequence[float]) -> npt.NDArray[np.float64]:
    """Median of each round: what slows the machine for longer than a round slows all contenders of it."""
    return np.asarray(np.median(np.reshape(samples, (-1, _CALLS_PER_TURN)), axis=1), np.float64)


def size(bundle: Path, classes: int, shots: int, seconds: float) -> dict[str, Any]:
    """A head of this size: what it adds to the encoder, and what teaching it takes."""
    head, image, wanted = made_up(classes, shots), images(1), ("logits",)
    with opened(bundle, "ort") as engine:
        # An engine may run the whole graph whatever is asked of it, so a head is compared with next to none.
        least, bound = (cast("HeadBackend", engine).bind(each.arrays()) for each in (made_up(2, 1), head))
        calls = {"least": lambda: least.run(image, wanted), "head": lambda: bound.run(image, wanted)}
        samples = in_turns(calls, seconds)
        taught = [teaching_s(cast("HeadBackend", engine), head, number) for number in range(REPEATS)]
    added = np.median(turns(samples["head"]) - turns(samples["least"]))
    print(
        f"{classes} classes x {shots}: head {added:.2f} ms, teaching {np.median(taught):.2f} s beyond encoding",
        flush=True,
    )
    return {
        "classes": classes,
        "shots": shots,
        "bytes": head_bytes(classes, shots, WIDTH),
        "samples_ms": samples,
        "teach_s": taught,
    }


def teaching_s(engine: HeadBackend, head: Head, seed: int) -> float:
    """A class of 5 photos, from their features to the engine that answers with it."""
    features = unit(np.random.default_rng(seed), PHOTOS, WIDTH)
    teacher = Teacher(head, head, None, "", Journal())
    started = time.perf_counter()
    change = teacher.taught("another", features, None, add=False, recalibrate=True)
    engine.bind(change.head.arrays())
    return time.perf_counter() - started


def in_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Some calls of each, round after round in a new order, after a pause and one untimed call."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    generator, names = np.random.default_rng(SEED), list(calls)
    ended = time.perf_counter() + seconds
    while time.perf_counter() < ended:
        for place in generator.permutation(len(names)):
            call = calls[names[place]]
            time.sleep(PAUSE_S)
            call()
            for _ in range(_CALLS_PER_TURN):
                started = time.perf_counter()
                call()
                samples[names[place]].append(round((time.perf_counter() - started) * _MS, 5))
    return samples


def opened(bundle: Path, backend: str) -> contextlib.closing[Backend]:
    """A bundle in an engine, with the head that it was exported with."""
    engine, _ = connect(open_bundle(bundle), backend=backend, threads=THREADS, keep_optimised=False, gpu=GpuOptions())
    return contextlib.closing(engine)


def images(batch: int) -> Float32:
    """Noise, about as large as normalised pixels."""
    return np.random.default_rng(SEED).standard_normal((batch, 3, 224, 224)).astype(np.float32)


def made_up(classes: int, shots: int) -> Head:
    """Classes in random directions, with keys around them."""
    rng = np.random.default_rng(SEED)
    centres = unit(rng, classes, WIDTH)
    keys = np.repeat(centres, shots, axis=0) + unit(rng, classes * shots, WIDTH)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    labels = [f"class {number}" for number in range(classes)]
    owners = np.repeat(np.arange(classes), shots)
    weights = {"alpha": 1.0, "beta": 5.5}
    return new_head(labels, centres, keys, owners, weights=weights, scale=100.0, bias=0.0)


def unit(rng: np.random.Generator, *shape: int) -> Float32:
    """float32, of length 1 along the last axis."""
    values = rng.standard_normal(shape, dtype=np.float32)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return values


if __name__ == "__main__":
    sys.exit(main())
