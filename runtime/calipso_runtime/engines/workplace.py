"""What every build begins and ends with: the bundle, a folder that is gone afterwards, and the plan that was kept."""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from calipso_runtime.bundle import Bundle, open_bundle
from calipso_runtime.engines import plans
from calipso_runtime.engines.checks import Checks
from calipso_runtime.graph_file import embedded_manifest
from calipso_runtime.head.file import refuse_engine
from calipso_runtime.manifest import Manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """What a build gave.

    Attributes:
        plan: in its place.
        checks: of the plan that was kept.
        warnings: of the compiler.
    """

    plan: plans.Plan
    checks: Checks
    warnings: tuple[str, ...]


def opened(path: Path) -> tuple[Bundle, Manifest]:
    """Open a bundle, or a bare `.onnx` that Calipso exported, of which an engine can be built.

    Raises:
        BundleError: the bundle cannot be used.
        UsageError: its graph takes several inputs.
    """
    bundle = open_bundle(path, remember=True)
    manifest = bundle.manifest or Manifest.from_json(json.loads(embedded_manifest(bundle.model_path)), source=str(path))
    refuse_engine(path, manifest)
    return bundle, manifest


@contextlib.contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Hold the lock of the folder of engines, and give a folder in it that is gone afterwards.

    Raises:
        EngineBuildError: another process builds into it, or it cannot be written.
    """
    with plans.building(folder):
        # The lock is held: others of this kind are what killed builds left.
        for left in folder.glob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
