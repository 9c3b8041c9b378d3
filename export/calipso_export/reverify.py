"""Verifies a bundle again, later or elsewhere: its file against eager PyTorch rebuilt from its manifest.

The text features are encoded anew from the prompts that the manifest lists, or are those of a file.
"""

from pathlib import Path

from calipso_export.head_checks import check_text
from calipso_export.photos import check_readable
from calipso_export.precision import PRECISIONS
from calipso_export.progress import Progress
from calipso_export.rebuild import rebuild
from calipso_export.reference import EagerClassifier
from calipso_export.steps.gather import Pictures, read_pictures
from calipso_export.steps.verify import ask_eager, verify
from calipso_runtime import load
from calipso_runtime.bundle import PARITY_FILE
from calipso_runtime.manifest import Manifest
from calipso_runtime.parity import Gates, Parity
from calipso_runtime.reference import read_gates


def reverify(
    bundle: Path,
    *,
    data: Path | None,
    checkpoint: Path | None,
    model: str | None,
    text_weights: Path | None = None,
    tokenizer: Path | None = None,
    text_model: Path | None = None,
    backend: str,
    progress: Progress,
) -> Parity:
    """Compare a bundle, or a bare `.onnx`, with eager PyTorch.

    Args:
        bundle: what to verify.
        data: a folder of pictures; edge cases only where None.
        checkpoint: the weights, needed where the bundle was exported from a file.
        model: the model's configuration file, needed where the bundle was exported from one.
        text_weights: the file that the text features came from; where it is not given, those of the graph are taken.
        tokenizer: folder of a Hugging Face tokenizer, where the bundle was exported with one.
        text_model: folder of a Hugging Face text model, likewise.
        backend: the engine to verify.
        progress: told about long work.

    Raises:
        ModelError: the weights given are not those that the bundle was made from.
        CalipsoError: whatever loading the bundle or the model raises.
    """
    with load(bundle, backend=backend, keep_optimised=False, taught=False) as classifier:
        manifest = classifier.manifest
        rebuilt = rebuild(
            bundle,
            manifest,
            checkpoint=checkpoint,
            model=model,
            text_weights=text_weights,
            tokenizer=tokenizer,
            text_model=text_model,
            progress=progress,
        )
        pictures = Pictures(pictures=(), source="none: edge cases only")
        if data is not None:
            pictures = read_pictures(data, manifest.labels, rebuilt.model.front_end)
            check_readable([str(each.content) for each in pictures.pictures], rebuilt.model.front_end, progress)
        checks = {}
        if rebuilt.prompts.text_weights is None and rebuilt.probes is None:
            checks["text"] = check_text(rebuilt.model, manifest.labels, rebuilt.prompts, rebuilt.heads.text)
        eager = EagerClassifier(rebuilt.model, rebuilt.heads, with_tokens="tokens" in classifier.outputs)
        answers = ask_eager(eager, pictures, progress)
        gates = _gates(bundle, manifest)
        return verify({bundle.name: classifier}, answers, checks, gates=gates, probes=rebuilt.probes, progress=progress)


def _gates(bundle: Path, manifest: Manifest) -> Gates:
    """Those that the export was held to; those of its precision for a bare `.onnx`."""
    path = bundle / PARITY_FILE
    if path.is_file():
        return read_gates(path)
    return PRECISIONS[manifest.precision].gates
