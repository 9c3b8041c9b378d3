"""What is measured: a bundle, the pictures, and what its rivals are made of, made once and when it is needed."""

import contextlib
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import calipso_runtime
from calipso_bench.contenders import ContenderUnavailable
from calipso_runtime.bundle import MANIFEST_FILE, open_bundle
from calipso_runtime.errors import CalipsoError, ModelError, UsageError
from calipso_runtime.graph_file import EXTERNAL_DATA_FILE
from calipso_runtime.manifest import IMAGE, Manifest, Preprocess

if TYPE_CHECKING:
    from calipso_bench.contenders.eager_module import EagerModel
    from calipso_export.progress import Progress
    from calipso_export.rebuild import Rebuilt

PLAIN_FILE = "plain.onnx"


class Subject:
    """A bundle, with what its contenders need of it.

    Args:
        bundle: a bundle's directory, or a bare `.onnx`.
        work: a folder for what is made on the way; it outlives the subject.
        checkpoint: the weights, where the bundle was exported from a file.
        model: the model's configuration, where it was exported from one.
        progress: told about long work.

    Attributes:
        manifest: what the bundle says of itself; its hashes were checked.
        preprocess: how pictures become the input.
        file_bytes: of the graph and its weights.
        made_s: what making these things has taken so far; it is no contender's own time.
        sha256: the manifest's digest of itself, or a bare `.onnx`'s own.

    Raises:
        BundleError: it is no bundle, damaged, or newer.
    """

    def __init__(
        self, bundle: Path, work: Path, *, checkpoint: Path | None, model: Path | None, progress: "Progress"
    ) -> None:
        opened = open_bundle(bundle)
        self.bundle = bundle
        self.manifest = opened.manifest or _own_manifest(bundle)
        if self.manifest.input_name != IMAGE:
            message = f"{bundle} takes {self.manifest.input_name}: `calipso bench` measures bundles of pictures alone"
            raise UsageError(message)
        self.preprocess: Preprocess = self.manifest.preprocess
        self.file_bytes = _graph_bytes(opened.model_path, self.manifest)
        self.sha256 = _manifest_digest(bundle) if bundle.is_dir() else opened.digest
        self.work = work
        self.model_file = model
        self.made_s = 0.0
        self._making = False
        self._checkpoint = checkpoint
        self._progress = progress

    def about(self) -> dict[str, Any]:
        """The results' `bundle` table."""
        manifest = self.manifest
        return {
            "name": self.bundle.name,
            "sha256": self.sha256,
            "model": manifest.model["name"],
            "weights": manifest.model["weights"]["source"],
            "classes": len(manifest.labels),
            "keys": manifest.few_shot.get("keys", 0),
            "calip": bool(manifest.head["calip"]["used"]),
            "tip_adapter": bool(manifest.head["tip_adapter"]["used"]),
            "precision": manifest.precision,
            "input": [3, *manifest.preprocess.size],
            "file_bytes": self.file_bytes,
        }

    @functools.cached_property
    def _rebuilt(self) -> "Rebuilt | ContenderUnavailable":
        try:
            from calipso_export.rebuild import rebuild
        except ImportError as error:
            return ContenderUnavailable(f"{error.name or error} cannot be imported: pip install 'calipso[export]'")
        try:
            return rebuild(
                self.bundle,
                self.manifest,
                checkpoint=self._checkpoint,
                model=None if self.model_file is None else str(self.model_file),
                progress=self._progress,
                encode_text=False,
            )
        except ModelError as error:
            # A file that was given and does not fit is the user's mistake; a missing one leaves rivals out.
            if self._checkpoint is not None or self.model_file is not None:
                raise
            return ContenderUnavailable(str(error))
        except (KeyError, TypeError) as error:
            return ContenderUnavailable(f"{self.bundle} was not made by this exporter: its manifest lacks {error}")

    def rebuilt(self) -> "Rebuilt":
        """The eager model and its heads.

        Raises:
            ContenderUnavailable: torch or the weights are missing.
        """
        with self._timed():
            found = self._rebuilt
        if isinstance(found, CalipsoError):
            raise found
        return found

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Add to `made_s`, once where one thing is made of another."""
        if self._making:
            yield
            return
        self._making, started = True, time.perf_counter()
        try:
            yield
        finally:
            self._making = False
            self.made_s += time.perf_counter() - started

    @functools.cached_property
    def _eager(self) -> "EagerModel":
        rebuilt = self.rebuilt()
        from calipso_bench.contenders.eager_module import of_rebuilt

        return of_rebuilt(rebuilt)

    def eager(self) -> "EagerModel":
        """The eager model as one module; its callers share it.

        Raises:
            ContenderUnavailable: torch or the weights are missing.
        """
        with self._timed():
            return self._eager

    @functools.cached_property
    def _eager_files(self) -> Path:
        rebuilt = self.rebuilt()
        from calipso_bench.contenders.eager_module import save
        from calipso_export.model_names import architecture_of, plain_file

        given = None if self.model_file is None else architecture_of(str(self.model_file))
        return save(rebuilt, self.work, config=None if given is None else plain_file(given))

    def eager_files(self) -> Path:
        """The eager model as files, from which a process of its own loads it.

        Raises:
            ContenderUnavailable: torch or the weights are missing.
        """
        with self._timed():
            return self._eager_files

    def plain_onnx(self) -> Path:
        """The naive export of the eager module, written at the first call.

        Raises:
            ContenderUnavailable: torch or the weights are missing.
        """
        path = self.work / PLAIN_FILE
        if not path.exists():
            model = self.eager()
            from calipso_bench.contenders.plain_export import plain_export

            self._progress("exporting the rivals' plain ONNX", 0, 1)
            with self._timed():
                plain_export(model, path, size=self.preprocess.size)
            self._progress("exporting the rivals' plain ONNX", 1, 1)
        return path


def _own_manifest(model_path: Path) -> Manifest:
    """A bare graph's own manifest, which takes an engine to read."""
    with calipso_runtime.load(model_path, threads=1) as classifier:
        return classifier.manifest


def _graph_bytes(model_path: Path, manifest: Manifest) -> int:
    """Of all graphs of a bundle and their weights; of a bare graph with the weights beside it."""
    if manifest.files:
        return sum(int(entry["bytes"]) for name, entry in manifest.files.items() if ".onnx" in name)
    data = model_path.with_name(EXTERNAL_DATA_FILE)
    return model_path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def _manifest_digest(bundle: Path) -> str:
    document = json.loads((bundle / MANIFEST_FILE).read_text(encoding="utf-8"))
    return str(document["sha256"])
