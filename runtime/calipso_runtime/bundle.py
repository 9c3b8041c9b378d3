"""The bundle: its schema, its hashes, and the only contract that exporter and runtime share.

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

The manifest, less what can only be known once the graph is written (`files`, `parity`), is also in
the graph's own metadata, beside a digest of the file: a bare `.onnx` is enough for the runtime.
"""

import contextlib
import dataclasses
import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calipso_runtime import signing
from calipso_runtime.confidence import Confidence
from calipso_runtime.errors import BundleCorruptError, BundleNotFoundError, BundleSchemaError, SignatureError
from calipso_runtime.hashes import remembered_sha256_of, sha256_of
from calipso_runtime.pixel_input import PixelInput
from calipso_runtime.signing import PublicKey

SCHEMA_VERSION = 1
MODEL_FILE = "model.onnx"
ORT_MODEL_FILE = "model.ort.onnx"
EXTERNAL_DATA_FILE = "model.onnx.data"
MANIFEST_FILE = "manifest.json"
PARITY_FILE = "parity.json"
REPORT_FILE = "report.html"
SEARCH_FILE = "search.json"
REFERENCE_FILE = "reference.npz"
HEAD_FILE = "head.npz"
TOKENIZER_FILE = "tokenizer.json"
# The text tower, where it is a graph of its own.
TEXT_FILE = "text.onnx"
ORT_TEXT_FILE = "text.ort.onnx"

METADATA_MANIFEST = "calipso.manifest"
METADATA_DIGEST = "calipso.sha256"
METADATA_DATA_DIGEST = "calipso.data-sha256"
# Of a graph made for one engine: how many pictures it runs at once fastest; more are given to it in parts.
METADATA_RUN_BATCH = "calipso.run-batch"
_VALUE_TAG, _LOW_BITS = b"\x12", 0x7F
# The digest of a file cannot contain itself: it is taken with this in its place.
DIGEST_PLACEHOLDER = b"sha256:" + b"0" * 64

_RESIZE_MODES = ("shortest", "longest", "squash")
_INTERPOLATIONS = ("bicubic", "bilinear")
_TABLES = ("input", "model", "prompts", "head", "graph", "tools", "files", "confidence", "tokenizer")
# What a graph may take: its first input. A bundle that does not say takes pictures.
IMAGE, POINTS, PIXELS = INPUTS = ("image", "points", "pixels")
# ONNX Runtime's own graph of each.
ORT_FILES = {MODEL_FILE: ORT_MODEL_FILE, TEXT_FILE: ORT_TEXT_FILE}
# What it gives.
LOGITS, EMBEDDING = "logits", "embedding"
# Beside it, where the text tower is in the bundle: int64 [N,L]; and what becomes of it.
TOKEN_IDS, TEXT_EMBEDDING = "token_ids", "text_embedding"
# Of head kinds, those that take any labels: both towers in one graph, or apart.
OPEN, EMBED = OPEN_KINDS = ("open", "embed")
_AXES = 3

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes the graph's input: open_clip's `preprocess_cfg`, resolved.

    Attributes:
        size: height and width of the input, in pixels.
        mean: per RGB channel, of values in [0, 1].
        std: per RGB channel, of values in [0, 1].
        interpolation: "bicubic" or "bilinear", both antialiased.
        resize_mode: "shortest" (then centre crop), "longest" (then pad) or "squash".
        fill_color: level in 0..255 that pads, for "longest".
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        if self.resize_mode not in _RESIZE_MODES:
            message = f"preprocess.resize_mode is {self.resize_mode!r}: expected one of {', '.join(_RESIZE_MODES)}"
            raise BundleSchemaError(message)
        if self.interpolation not in _INTERPOLATIONS:
            message = (
                f"preprocess.interpolation is {self.interpolation!r}: expected one of {', '.join(_INTERPOLATIONS)}"
            )
            raise BundleSchemaError(message)
        if (len(self.size), len(self.mean), len(self.std)) != (2, 3, 3):
            message = (
                f"preprocess has size {self.size}, mean {self.mean} and std {self.std}: expected 2, 3 and 3 values"
            )
            raise BundleSchemaError(message)
        if not all(pixels >= 1 for pixels in self.size) or not all(deviation > 0 for deviation in self.std):
            message = f"preprocess has size {self.size} and std {self.std}: expected positive values"
            raise BundleSchemaError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        labels: class names, in the order of the logits; of kinds "open" and "embed" those that are meant where a call
            names none, and there may be none.
        preprocess: how a picture becomes the graph's input; its size is that of the tower's images in any case.
        input: `name` of the graph's input, "image", "points" or "pixels"; of points how many (`points`), and how they
            are projected; of pixels what `PixelInput` says.
        precision: type of the graph's arithmetic, "fp32".
        model: name, family, embed_dim, logit_scale, logit_bias, and where the weights came from.
        prompts: templates, or prompts per class, that made the text weights.
        head: the parameters of CALIP and of the few-shot head, and how they were chosen; `kind` is "baked", "inputs"
            where text features and keys are inputs of the graph, "open" where token ids are one, or "embed" where
            the text tower is a graph of its own.
        graph: opset, inputs and outputs by name, node count.
        tools: version of every tool that took part.
        confidence: the temperature of the probabilities and the threshold for "unknown", and how they were found;
            empty in bundles without.
        tokenizer: settings of `tokenizer.json` and its sha256, where the bundle has a text tower; else empty.
        files: sha256 and bytes of every other file of the bundle; empty in a graph's own metadata.
        parity: "passed", "failed", or "unknown" in a graph's own metadata.
    """

    labels: tuple[str, ...]
    preprocess: Preprocess
    precision: str
    model: Json
    prompts: Json
    head: Json
    graph: Json
    tools: Json
    input: Json = dataclasses.field(default_factory=lambda: {"name": IMAGE})
    files: Json = dataclasses.field(default_factory=dict)
    parity: str = "unknown"
    confidence: Json = dataclasses.field(default_factory=dict)
    tokenizer: Json = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def takes_labels(self) -> bool:
        """Whether the text tower is in the bundle, and labels are given when it is used."""
        return self.head.get("kind") in OPEN_KINDS

    @property
    def input_name(self) -> str:
        """Of the graph's input: "image", "points" or "pixels"."""
        return str(self.input["name"])

    @property
    def pixels(self) -> PixelInput | None:
        """What the graph takes, where it takes raw pixels."""
        return PixelInput.from_json(self.input) if self.input_name == PIXELS else None

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Of one item in the graph's input: [3,H,W] of an image, [P,3] of points, [H,W,C] of pixels; None for any."""
        if (pixels := self.pixels) is not None:
            return pixels.shape
        return (int(self.input["points"]), _AXES) if self.input_name == POINTS else (3, *self.preprocess.size)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types, in the schema's order."""
        document = dataclasses.asdict(self)
        return {"schema_version": document.pop("schema_version"), **json.loads(json.dumps(document))}

    @property
    def few_shot(self) -> dict[str, Any]:
        """What `head` says of the few-shot head: its `name`, whether it is `used`, its parameters.

        The first bundles knew Tip-Adapter alone, under its own name.
        """
        record: dict[str, Any] | None = self.head.get("few_shot")
        return {"name": "tip-adapter", **self.head["tip_adapter"]} if record is None else record

    def core(self) -> dict[str, Any]:
        """What the graph itself carries: all but `files` and `parity`."""
        return {key: value for key, value in self.as_json().items() if key not in ("files", "parity")}

    @classmethod
    def from_json(cls, document: object, *, source: str) -> "Manifest":
        """Read a manifest.

        Args:
            document: parsed JSON.
            source: the file it came from, for messages.

        Raises:
            BundleSchemaError: it is of a newer schema version, or does not follow the schema.
        """
        if not isinstance(document, dict) or not isinstance(document.get("schema_version"), int):
            message = f"{source} is not a Calipso manifest: it has no schema_version"
            raise BundleSchemaError(message)
        version = document["schema_version"]
        if version > SCHEMA_VERSION:
            message = (
                f"{source} has schema version {version}; this runtime reads up to {SCHEMA_VERSION}. "
                "Upgrade calipso, or export again with this version"
            )
            raise BundleSchemaError(message)
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            values = {key: value for key, value in document.items() if key in known}
            values["labels"] = tuple(str(label) for label in document["labels"])
            preprocess: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in document["preprocess"].items()
            }
            values["preprocess"] = Preprocess(**preprocess)
            manifest = cls(**values)
        except BundleSchemaError as error:
            message = f"{source}: {error}"
            raise BundleSchemaError(message) from error
        except (KeyError, TypeError, AttributeError) as error:
            message = f"{source} does not follow the manifest's schema {version}: {error}"
            raise BundleSchemaError(message) from error
        if (wrong := _wrong_table(manifest)) is not None:
            message = f"{source} does not follow the manifest's schema {version}: {wrong}"
            raise BundleSchemaError(message)
        return manifest


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


def _wrong_table(manifest: Manifest) -> str | None:
    """What a table holds that no reader could use; None if all can be used."""
    for name in _TABLES:
        if not isinstance(getattr(manifest, name), dict):
            return f"{name} is not an object"
    if (wrong := _wrong_input(manifest.input)) is not None:
        return f"{wrong}. Upgrade calipso, or export again"
    try:
        Confidence.from_json(manifest.confidence)
    except (BundleSchemaError, AttributeError) as error:
        return str(error)
    return None


def _wrong_input(given: Json) -> str | None:
    """Why this is no input that the runtime can give a graph; None if it is."""
    name, count = given.get("name"), given.get("points")
    if name not in INPUTS:
        return f"its input is {name!r}, expected is one of {', '.join(INPUTS)}"
    if name == PIXELS:
        try:
            PixelInput.from_json(given)
        except BundleSchemaError as error:
            return str(error)
    if name == POINTS and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        return f"its input takes {count!r} points, expected is a number of at least 1"
    return None


def canonical(document: Json) -> str:
    """The one way a document is written before it is hashed."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def file_entry(path: Path) -> dict[str, Any]:
    """A file's line in the manifest: its sha256 and its size in bytes."""
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


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


def read_manifest(path: Path, key: PublicKey | None = None) -> Manifest:
    """Read `manifest.json` and check the digest that it carries of itself, and before it the signature by a key."""
    content = path.read_bytes() if key is None else key.verified(path)
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # Not JSON, not UTF-8, numbers of thousands of digits, or nested without end.
        message = f"{path} is not valid JSON ({error}): it is truncated or was edited. Export the bundle again"
        raise BundleCorruptError(message) from error
    manifest = Manifest.from_json(document, source=str(path))
    claimed = document.pop("sha256", None)
    # A lone surrogate is valid JSON, and no text that could be encoded again.
    if claimed != hashlib.sha256(canonical(document).encode(errors="surrogatepass")).hexdigest():
        message = f"{path} was edited: it does not match its own sha256. Export the bundle again"
        raise BundleCorruptError(message)
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with the digest of itself."""
    document = manifest.as_json()
    document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


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


def manifest_of_metadata(metadata: Mapping[str, str], *, source: str) -> Manifest:
    """Read the manifest that a graph carries in its own metadata.

    Raises:
        BundleSchemaError: the graph carries none, or a newer one.
    """
    try:
        document = json.loads(metadata[METADATA_MANIFEST])
    except (KeyError, json.JSONDecodeError) as error:
        message = (
            f"{source} carries no readable Calipso manifest: only graphs written by `calipso export` can be loaded"
        )
        raise BundleSchemaError(message) from error
    return Manifest.from_json(document, source=f"{source} (its metadata)")


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
