"""What a program is compared with: some of the bundle's reference pictures, and what Python prints of them."""

from pathlib import Path

import numpy as np

from calipso_runtime.confidence import Confidence
from calipso_runtime.errors import BundleError
from calipso_runtime.manifest import Manifest
from calipso_runtime.prediction import as_text, rank
from calipso_runtime.reference import Reference

IMAGES_FILE, LABELS_FILE, EXPECTED_FILE = "sample.npy", "labels.txt", "expected.txt"
CONFIDENCE_FILE = "confidence.txt"
MOST_IMAGES = 8
_TOP = 5


def write_sample(folder: Path, reference: Reference, manifest: Manifest) -> None:
    """Write labels, confidence, the first pictures as the graph takes them, and eager PyTorch's answers to them.

    Args:
        folder: to write into.
        reference: of the bundle.
        manifest: of the bundle.

    Raises:
        BundleError: a label does not fit on one line.
    """
    for label in manifest.labels:
        if label.splitlines() != [label]:
            message = f"the label {label!r} is not one line: labels.txt has one to a line. Export with another name"
            raise BundleError(message)
    (folder / LABELS_FILE).write_text(
        "".join(f"{label}\n" for label in manifest.labels), encoding="utf-8", newline="\n"
    )
    count = min(MOST_IMAGES, len(reference.names))
    np.save(folder / IMAGES_FILE, reference.images(range(count), manifest).astype("<f4"), allow_pickle=False)
    logits = reference.answers.outputs["logits"][:count]
    confidence = Confidence.from_json(manifest.confidence)
    # No probability is below 0.
    numbers = (confidence.temperature, confidence.unknown_below or 0.0)
    (folder / CONFIDENCE_FILE).write_text("".join(f"{number!r}\n" for number in numbers), newline="\n")
    texts = [
        as_text(f"{IMAGES_FILE}[{place}]", rank(row, manifest.labels, _TOP, confidence), confidence)
        for place, row in enumerate(logits)
    ]
    (folder / EXPECTED_FILE).write_text("\n".join(texts) + "\n", encoding="utf-8", newline="\n")
