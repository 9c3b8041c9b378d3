"""The bundle on disk: its files and their hashes. With the manifest, all that exporter and runtime share.

A bundle is a directory:

    model.onnx      the graph; weights beyond 2 GB lie beside it in model.onnx.data
    model.ort.onnx  the same for ONNX Runtime on a CPU, over the same weights
    manifest.json   everything a reader needs to know about the graph, and the sha256 of every file
    parity.json     what was compared with eager PyTorch, and how far it was off
    report.html     the same for people
    search.json     validation curves, where parameters were searched
    reference.npz   some of the pictures, and eager PyTorch's answers, to check engines with
    head.npz        text features and keys, where the head is an input of the graph
    tokenizer.json  texts to token ids, where the bundle has a text tower
    text.onnx       the text tower, where it is a graph of its own; text.onnx.data and text.ort.onnx as above
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from calipso_runtime import signing
from calipso_runtime.errors import BundleCorruptError, BundleNotFoundError, SignatureError
from calipso_runtime.graph_file import MODEL_FILE, ORT_MODEL_FILE, check_seal
from calipso_runtime.hashes import remembered_sha256_of, sha256_of
from calipso_runtime.manifest import Json, Manifest, read_manifest
from calipso_runtime.signing import PublicKey

MANIFEST_FILE = "manifest.json"
PARITY_FILE = "parity.json"
REPORT_FILE = "report.html"
SEARCH_FILE = "search.json"
REFERENCE_FILE = "reference.npz"
HEAD_FILE = "head.npz"
TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk whose hashes were checked.

    Attributes:
        path: what was opened: the directory, or a bare `.onnx`.
        model_path: the graph.
        manifest: what it says, or None for a bare `.onnx`, whose own metadata says it.
        digest: sha256 that stands for all graphs of the bundle.
        ort_model_path: the graph for ONNX Runtime on a CPU, or None where there is none.
        signed_by: key whose signature the manifest carries, and every plan has to carry; None where none is required.
    """

    path: Path
    model_path: Path
    manifest: Manifest | None
    digest: str
    ort_model_path: Path | None = None
    signed_by: PublicKey | None = None


def open_bundle(path: str | Path, *, remember: bool = False, require_signature: str | Path | None = None) -> Bundle:
    """Find a bundle, and check every hash before anything of it is used.

    Args:
        path: a bundle's directory, or a bare `.onnx` that Calipso exported.
        remember: trust the hash of a large file that has not changed since it was hashed, on this machine.
        require_signature: file of a public key: refuse a bundle whose manifest it did not sign, before anything of it
            is read, and hash every file anew.

    Raises:
        BundleNotFoundError: there is nothing there, or it is not a bundle.
        BundleCorruptError: a file is missing, truncated or edited.
        BundleSchemaError: the manifest is of a newer version or does not follow the schema.
        SignatureError: the signature is missing or wrong, or a bare `.onnx` has none; or cryptography is missing.
        UsageError: the key cannot be used.
    """
    path = Path(path)
    key = None if require_signature is None else signing.read_public_key(Path(require_signature))
    if not path.exists():
        message = f"{path} does not exist: expected a bundle (a directory) or a .onnx file"
        raise BundleNotFoundError(message)
    if path.is_file():
        if key is not None:
            message = (
                f"{path} is a bare graph, and what is signed is a bundle's {MANIFEST_FILE}: give the bundle's directory"
            )
            raise SignatureError(message)
        return Bundle(path=path, model_path=path, manifest=None, digest=check_seal(path))
    if not (path / MANIFEST_FILE).is_file():
        message = f"{path} is not a Calipso bundle: it has no {MANIFEST_FILE}"
        raise BundleNotFoundError(message)
    manifest = read_manifest(path / MANIFEST_FILE, key)
    if MODEL_FILE not in manifest.files:
        message = f"{path / MANIFEST_FILE} lists no {MODEL_FILE}: export the bundle again"
        raise BundleCorruptError(message)
    for name, entry in manifest.files.items():
        if Path(name).name != name or not isinstance(entry, dict):
            message = f"{path / MANIFEST_FILE} lists {name!r}, which is no file of the bundle itself"
            raise BundleCorruptError(message)
        _check_file(path / name, entry, remember=remember and key is None)
    ort_model_path = path / ORT_MODEL_FILE if ORT_MODEL_FILE in manifest.files else None
    graphs = "".join(str(manifest.files[name]["sha256"]) for name in sorted(manifest.files) if ".onnx" in name)
    return Bundle(
        path=path,
        model_path=path / MODEL_FILE,
        manifest=manifest,
        digest=hashlib.sha256(graphs.encode()).hexdigest(),
        ort_model_path=ort_model_path,
        signed_by=key,
    )


def file_entry(path: Path) -> dict[str, Any]:
    """A file's line in the manifest: its sha256 and its size in bytes."""
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def _check_file(path: Path, entry: Json, *, remember: bool) -> None:
    if not path.is_file():
        message = f"{path} is missing: the manifest lists it. Copy or export the bundle again"
        raise BundleCorruptError(message)
    size = path.stat().st_size
    if size != entry.get("bytes"):
        message = f"{path} has {size} bytes, the manifest says {entry.get('bytes')}: it is truncated or was edited"
        raise BundleCorruptError(message)
    if (remembered_sha256_of if remember else sha256_of)(path) != entry.get("sha256"):
        message = f"{path} was changed after its export: its sha256 is not the manifest's. Export the bundle again"
        raise BundleCorruptError(message)
