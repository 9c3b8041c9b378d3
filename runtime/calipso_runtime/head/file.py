"""`head.npz`: the text features and keys that a bundle was exported with, where its head is an input of the graph.

    text    float32 [K,D], L2-normalised, in the order of the manifest's labels
    keys    float32 [M,D], L2-normalised; none without example photos
    owners  int64 [M], class index of each key

Alpha and beta are the manifest's. Its sha256 is in the manifest that the graph carries, so that a bare `.onnx` with
this file beside it is checked as well.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from calipso_runtime.bundle import HEAD_FILE, Bundle
from calipso_runtime.errors import BundleCorruptError, BundleSchemaError, UsageError
from calipso_runtime.graph_file import METADATA_MANIFEST, embedded_manifest
from calipso_runtime.hashes import sha256_of
from calipso_runtime.head.classes import Head, new_head
from calipso_runtime.manifest import OPEN, Manifest, manifest_of_metadata
from calipso_runtime.pixel_input import OP

KIND = "inputs"
# What NumPy raises on files that are no archive of arrays, or a damaged one.
_READING_ERRORS = (OSError, ValueError, LookupError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


def is_input(manifest: Manifest) -> bool:
    """Whether the head is an input of the graph."""
    return manifest.head.get("kind") == KIND


def write_head(path: Path, head: Head) -> None:
    """Write `head.npz`: the same bytes for the same head."""
    np.savez(path, text=head.text, keys=head.keys, owners=head.owners)


def read_head(model_path: Path, manifest: Manifest) -> Head:
    """The head that a bundle was exported with.

    Args:
        model_path: the graph, beside which the file lies.
        manifest: what it says.

    Raises:
        BundleCorruptError: the file is missing, is not the manifest's, or does not fit it.
    """
    path = model_path.with_name(HEAD_FILE)
    if not path.is_file():
        message = (
            f"{path} is missing: the head of {model_path.name} is an input of the graph, and lies there. Copy both"
        )
        raise BundleCorruptError(message)
    try:
        if sha256_of(path) != manifest.head["sha256"]:
            message = f"{path} is not the head of {model_path.name}: its sha256 is another. Copy or export it again"
            raise BundleCorruptError(message)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            text, keys, owners = (archive[name] for name in ("text", "keys", "owners"))
        cache, width, count = manifest.head["tip_adapter"], int(manifest.model["embed_dim"]), len(manifest.labels)
        fits = (
            (text.shape, text.dtype.name) == ((count, width), "float32")
            and (keys.shape[1:], keys.dtype.name) == ((width,), "float32")
            and (owners.shape, owners.dtype.name) == (keys.shape[:1], "int64")
            and (len(owners) == 0 or 0 <= owners.min() <= owners.max() < count)
        )
        if not fits:
            message = (
                f"{path} holds text {text.shape}, keys {keys.shape} and owners {owners.shape}: it fits no manifest"
            )
            raise BundleCorruptError(message)
        return new_head(
            manifest.labels,
            text,
            keys,
            owners,
            weights={name: float(cache[name]) for name in ("alpha", "beta")} if cache["used"] else None,
            scale=float(manifest.model["logit_scale"]),
            bias=float(manifest.model["logit_bias"]),
        )
    except (*_READING_ERRORS, TypeError) as error:
        message = f"{path} is no head of this bundle ({error}): export the bundle again"
        raise BundleCorruptError(message) from error


def exported_head(bundle: Bundle) -> Head | None:
    """The head that a bundle was exported with, where it is an input of the graph; else None.

    Raises:
        BundleCorruptError: see `read_head`.
    """
    return read_head(bundle.model_path, manifest_of(bundle)) if has_input_head(bundle) else None


def refuse_engine(path: Path, manifest: Manifest) -> None:
    """Refuse to build engines of graphs that TensorRT cannot take.

    Raises:
        UsageError: its head is an input, whose ranges of sizes nobody has given; or it resizes pictures of any size.
    """
    if manifest.pixels is not None and manifest.pixels.resize == OP:
        message = (
            f"{path} resizes pictures by an operator that TensorRT has not: export it with --pixels-size HxW, the size "
            "of the camera's pictures"
        )
        raise UsageError(message)
    if is_input(manifest):
        message = (
            f"{path} has a head that is an input of its graph, for which TensorRT engines are not built yet: export it "
            "with --head-mode baked, or run it on ort or openvino"
        )
        raise UsageError(message)
    if manifest.head.get("kind") == OPEN:
        message = (
            f"{path} has both towers in one graph, for which TensorRT engines are not built: export it with --embed, "
            "whose image tower is a graph of its own, or run it on ort or openvino"
        )
        raise UsageError(message)


def refuse_labels(path: Path, manifest: Manifest, why: str) -> None:
    """Refuse a bundle that takes any labels, where none are given when it is used: `why`, and what to do instead.

    Raises:
        UsageError: it takes them.
    """
    if manifest.takes_labels:
        message = f"{path} takes labels when it is used, and {why}, or export it with --head-mode baked"
        raise UsageError(message)


def has_input_head(bundle: Bundle) -> bool:
    """Whether the head is an input; what is wrong with a graph that tells nothing, its engine says best."""
    return _kind(bundle) == KIND


def takes_token_ids(bundle: Bundle) -> bool:
    """Whether the graph has both towers in it, and so a second input; likewise."""
    return _kind(bundle) == OPEN


def _kind(bundle: Bundle) -> object:
    try:
        return manifest_of(bundle).head.get("kind")
    except BundleSchemaError:
        return None


def manifest_of(bundle: Bundle) -> Manifest:
    """A bundle's manifest, or that which a bare graph carries. Raises BundleSchemaError: it carries none."""
    if bundle.manifest is not None:
        return bundle.manifest
    path = bundle.model_path
    return manifest_of_metadata({METADATA_MANIFEST: embedded_manifest(path)}, source=str(path))
