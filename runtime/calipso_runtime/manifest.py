"""The manifest: its schema, and how it is read, checked and written."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calipso_runtime.confidence import Confidence
from calipso_runtime.errors import BundleCorruptError, BundleSchemaError
from calipso_runtime.graph_file import METADATA_MANIFEST
from calipso_runtime.pixel_input import PixelInput
from calipso_runtime.signing import PublicKey

SCHEMA_VERSION = 1

_RESIZE_MODES = ("shortest", "longest", "squash")
_INTERPOLATIONS = ("bicubic", "bilinear")
_TABLES = ("input", "model", "prompts", "head", "graph", "tools", "files", "confidence", "tokenizer")
# What a graph may take: its first input. A bundle that does not say takes pictures.
IMAGE, POINTS, PIXELS = INPUTS = ("image", "points", "pixels")
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


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with the digest of itself."""
    document = manifest.as_json()
    document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def canonical(document: Json) -> str:
    """The one way a document is written before it is hashed."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


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
