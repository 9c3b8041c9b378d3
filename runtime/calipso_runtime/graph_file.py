"""A graph's file: where its weights lie, and what its own metadata says, read without anything that knows ONNX.

The metadata holds the manifest, less what can only be known once the graph is written, and digests of the file and of
the weights beside it: a bare `.onnx` is enough for the runtime.
"""

import contextlib
import hashlib
import mmap
from pathlib import Path

from calipso_runtime.errors import BundleCorruptError, BundleSchemaError
from calipso_runtime.hashes import sha256_of

MODEL_FILE = "model.onnx"
ORT_MODEL_FILE = "model.ort.onnx"
EXTERNAL_DATA_FILE = "model.onnx.data"
# The text tower, where it is a graph of its own.
TEXT_FILE = "text.onnx"
ORT_TEXT_FILE = "text.ort.onnx"
# ONNX Runtime's own graph of each.
ORT_FILES = {MODEL_FILE: ORT_MODEL_FILE, TEXT_FILE: ORT_TEXT_FILE}

METADATA_MANIFEST = "calipso.manifest"
METADATA_DIGEST = "calipso.sha256"
METADATA_DATA_DIGEST = "calipso.data-sha256"
# Of a graph made for one engine: how many pictures it runs at once fastest; more are given to it in parts.
METADATA_RUN_BATCH = "calipso.run-batch"
_VALUE_TAG, _LOW_BITS = b"\x12", 0x7F
# The digest of a file cannot contain itself: it is taken with this in its place.
DIGEST_PLACEHOLDER = b"sha256:" + b"0" * 64


def weights_file(path: Path) -> Path:
    """Where a graph keeps weights that are not in itself: beside it, or in the graph that it is a variant of."""
    portable = {name: graph for graph, name in ORT_FILES.items()}.get(path.name)
    if portable == TEXT_FILE and not path.with_name(TEXT_FILE).exists():
        # Both towers are in one graph.
        portable = MODEL_FILE
    data = path.with_name(f"{TEXT_FILE}.data" if TEXT_FILE in (path.name, portable) else EXTERNAL_DATA_FILE)
    return data if portable is None or data.exists() else path.with_name(portable)


def seal_model(path: Path) -> str:
    """Write the digests of a graph, and of the external data beside it, into the graph's own metadata.

    Args:
        path: a `.onnx` whose metadata holds `METADATA_DIGEST: DIGEST_PLACEHOLDER` exactly once, and
            `METADATA_DATA_DIGEST` likewise where it has external data.

    Returns:
        The hex digest of the file as it was with its own placeholder.
    """
    data = weights_file(path)
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as content:
        if data.exists() and _digest_position(content, METADATA_DATA_DIGEST) is not None:
            _write_digest(content, METADATA_DATA_DIGEST, sha256_of(data), path)
        digest = hashlib.sha256(content).hexdigest()
        _write_digest(content, METADATA_DIGEST, digest, path)
    return digest


def check_seal(path: Path) -> str:
    """Check a bare graph, and the external data beside it, against the digests in its own metadata.

    Returns:
        The graph's hex digest, which covers that of its data.

    Raises:
        BundleCorruptError: it is empty, truncated, edited, or was not written by Calipso.
    """
    if path.stat().st_size == 0:
        message = f"{path} is empty: copy it again"
        raise BundleCorruptError(message)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = _digest_position(content, METADATA_DIGEST)
        if at is None:
            message = (
                f"{path} carries no Calipso digest: it is truncated, or no `calipso export` wrote it. "
                "Copy it again, or export it"
            )
            raise BundleCorruptError(message)
        end = at + len(DIGEST_PLACEHOLDER)
        digesting = hashlib.sha256(memoryview(content)[:at])
        digesting.update(DIGEST_PLACEHOLDER)
        digesting.update(memoryview(content)[end:])
        digest = digesting.hexdigest()
        if content[at:end] != b"sha256:" + digest.encode():
            message = f"{path} was changed after its export: its content does not match its own digest. Export it again"
            raise BundleCorruptError(message)
        data_at = _digest_position(content, METADATA_DATA_DIGEST)
        promised = None if data_at is None else content[data_at : data_at + len(DIGEST_PLACEHOLDER)]
    if promised is not None:
        data = weights_file(path)
        if not data.is_file() or promised != b"sha256:" + sha256_of(data).encode():
            message = f"{data} is missing, truncated or edited: {path.name} keeps its weights there. Copy it again"
            raise BundleCorruptError(message)
    return digest


def embedded_manifest(path: Path) -> str:
    """The manifest that a graph carries, as its JSON text, read without anything that knows ONNX.

    Raises:
        BundleSchemaError: the graph carries none.
    """
    return _embedded(path, METADATA_MANIFEST)


def seal_of(path: Path) -> str:
    """The digest that a graph carries of itself and its external data, "sha256:...": whether right is not checked.

    Raises:
        BundleSchemaError: the graph carries none.
    """
    return _embedded(path, METADATA_DIGEST)


def _embedded(path: Path, name: str) -> str:
    """A value of a graph's metadata. Protobuf writes key, tag 0x12, length of the value as a varint, value."""
    key = name.encode() + _VALUE_TAG
    if path.stat().st_size > 0:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.rfind(key)
            if at >= 0:
                length, at = _varint(content, at + len(key))
                with contextlib.suppress(UnicodeDecodeError):
                    return content[at : at + length].decode()
    message = f"{path} carries no readable {name}: only graphs written by `calipso export` can be loaded"
    raise BundleSchemaError(message)


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of seven bits to a byte, lowest first, and where it ends."""
    value, shift = 0, 0
    while at < len(content):
        last, at = content[at], at + 1
        value |= (last & _LOW_BITS) << shift
        if last <= _LOW_BITS:
            break
        shift += 7
    return value, at


def _write_digest(content: mmap.mmap, key: str, digest: str, path: Path) -> None:
    at = _digest_position(content, key)
    if at is None or content[at : at + len(DIGEST_PLACEHOLDER)] != DIGEST_PLACEHOLDER:
        message = f"{path} has no digest placeholder {key} in its metadata: it was not written by this exporter"
        raise BundleCorruptError(message)
    content[at : at + len(DIGEST_PLACEHOLDER)] = b"sha256:" + digest.encode()


def _digest_position(content: mmap.mmap, key: str) -> int | None:
    """Where a digest's 71 characters stand. The metadata is at the end of a serialised model."""
    start = content.rfind(key.encode())
    if start < 0:
        return None
    at = content.find(b"sha256:", start + len(key))
    return None if at < 0 or at + len(DIGEST_PLACEHOLDER) > len(content) else at
