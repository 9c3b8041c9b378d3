"""How fast the shipped file is: `calipso bench` on three full-size bundles, against every rival.

    python -m benchmarks.speed [--models ViT-B-32,ViT-B-16,RN50]

1,000 classes, 16,000 cache keys, CALIP on, random weights. Bundles and unfinished results stay under
build/bench/: an interrupted run goes on where it stopped. Finished results go to results/.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.full_size import inputs
from calipso_bench.config import BenchConfig
from calipso_bench.html import page
from calipso_bench.run import run
from calipso_export import ExportConfig, export
from calipso_export.progress import Progress
from calipso_export.progress_bars import progress_bars
from calipso_runtime.errors import UsageError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "build" / "bench"
MODELS = ("ViT-B-32", "ViT-B-16", "RN50")
THREADS = (1, 2)
# The end-to-end stage, cold start and LoadGen are measured on this one.
SERVED = "ViT-B-32"
SECONDS = 3.0


def main() -> int:
    """Measure what is missing, and move what is finished to results/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(MODELS))
    models = parser.parse_args().models.split(",")
    WORK.mkdir(parents=True, exist_ok=True)
    with progress_bars(Console(stderr=True)) as progress:
        for place, model in enumerate(models):
            progress("models", place, len(models))
            measure(model, progress)
        progress("models", len(models), len(models))
    return 0


def measure(model: str, progress: Progress) -> None:
    """One model: its bundle, its cells and, of the served one, what a process of its own shows."""
    bundle = made_bundle(model, progress)
    stages = ("encode", "classify", "end-to-end") if model == SERVED else ("encode", "classify")
    name = model.lower()
    kept(
        BenchConfig(bundle=bundle, stages=stages, threads=THREADS, seconds=SECONDS, json=WORK / f"speed-{name}.json"),
        progress,
    )
    if model == SERVED:
        scenarios = ("cold-start", "memory", "loadgen")
        place = WORK / f"serving-{name}.json"
        kept(BenchConfig(bundle=bundle, scenarios=scenarios, threads=THREADS[-1:], seconds=10.0, json=place), progress)


def made_bundle(model: str, progress: Progress) -> Path:
    """Export, unless an earlier run did so with the same code."""
    bundle = WORK / f"{model}.calipso"
    if not (bundle / "manifest.json").is_file():
        with tempfile.TemporaryDirectory() as folder:
            export(ExportConfig(**{**inputs(model, Path(folder)), "output": bundle}), progress)
    return bundle


def kept(config: BenchConfig, progress: Progress) -> None:
    """Run, going on with what lies there where it is of the same measurement; then move it to results/."""
    if config.json is None:
        message = "a benchmark without a results file cannot be kept"
        raise ValueError(message)
    try:
        document = run(config, progress)
    except UsageError:
        # Of another commit or configuration: begun anew.
        document = run(BenchConfig(**{**vars(config), "overwrite": True}), progress)
    (config.json.with_suffix(".html")).write_text(page(document), encoding="utf-8")
    target = RESULTS / config.json.name
    target.write_text(json.dumps(document, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    logs = config.json.with_name(f"{config.json.stem}-loadgen")
    if logs.is_dir():
        shutil.copytree(logs, RESULTS / logs.name, dirs_exist_ok=True)
    config.json.unlink()


if __name__ == "__main__":
    sys.exit(main())
