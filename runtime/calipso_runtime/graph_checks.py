"""Whether the graph that an engine has loaded is the one that the bundle's manifest promises."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from calipso_runtime.backends import Backend
from calipso_runtime.bundle import Bundle
from calipso_runtime.errors import BundleCorruptError
from calipso_runtime.manifest import (
    EMBEDDING,
    LOGITS,
    PIXELS,
    TEXT_EMBEDDING,
    TOKEN_IDS,
    Manifest,
    manifest_of_metadata,
)

_IO_DTYPES = ("float32", "float16")
_PIXELS_DTYPE = "uint8"
_IDS_DTYPE = "int64"

# Inputs and outputs with their sizes; None is dynamic.
_Promised: TypeAlias = Mapping[str, tuple[int | None, ...]]


def manifest_of_graph(bundle: Bundle, engine: Backend) -> Manifest:
    """The bundle's manifest, checked against the graph's own; or the graph's own for a bare `.onnx`."""
    own = manifest_of_metadata(engine.metadata, source=str(bundle.model_path))
    if bundle.manifest is None:
        return own
    if own.core() != bundle.manifest.core():
        differing = [key for key, value in own.core().items() if bundle.manifest.core()[key] != value]
        message = (
            f"{bundle.path}: its manifest and its graph tell different things about {', '.join(differing)}. "
            "They come from different exports: export the bundle again"
        )
        raise BundleCorruptError(message)
    return bundle.manifest


def check_graph(engine: Backend, manifest: Manifest, path: Path) -> None:
    """Refuse a graph whose inputs and outputs are not those that its manifest promises.

    Raises:
        BundleCorruptError: it is one.
    """
    has_texts = any(tensor.name == TOKEN_IDS for tensor in engine.inputs)
    _check(engine, manifest.graph, _promised(manifest, has_texts=has_texts), path)


def check_text_graph(engine: Backend, manifest: Manifest, path: Path) -> None:
    """Refuse a text tower that is not of the graph with this manifest, or not as promised: see `check_graph`."""
    if manifest_of_metadata(engine.metadata, source=str(path)).core() != manifest.core():
        message = f"{path} and the graph beside it come from different exports: export the bundle again"
        raise BundleCorruptError(message)
    # Of a bundle with one graph its description tells of the text tower too.
    _check(engine, manifest.graph.get("text", manifest.graph), _promised_of_texts(manifest), path)


def doubts(path: str | Path, manifest: Manifest) -> list[str]:
    """Return the warnings for whoever loads the bundle, one sentence each."""
    if manifest.parity != "failed":
        return []
    message = (
        f"{path} failed its parity gate: it does not answer like the model it was exported from. "
        "See its parity.json, and export it again"
    )
    return [message]


def _promised(manifest: Manifest, *, has_texts: bool) -> _Promised:
    promised: dict[str, tuple[int | None, ...]] = {manifest.input_name: (None, *manifest.input_shape)}
    if not manifest.takes_labels:
        return promised | {LOGITS: (None, len(manifest.labels))}
    promised[EMBEDDING] = (None, int(manifest.model["embed_dim"]))
    if not has_texts:
        return promised
    return {**promised, LOGITS: (None, None), **_promised_of_texts(manifest)}


def _promised_of_texts(manifest: Manifest) -> _Promised:
    context = manifest.tokenizer.get("context_length")
    return {TOKEN_IDS: (None, context), TEXT_EMBEDDING: (None, int(manifest.model["embed_dim"]))}


def _check(engine: Backend, described: Mapping[str, Any], promised: _Promised, path: Path) -> None:
    found = {tensor.name: tensor for tensor in (*engine.inputs, *engine.outputs)}
    for name, expected in promised.items():
        tensor = found.get(name)
        dtype = _IDS_DTYPE if name == TOKEN_IDS else _promised_dtype(described, name)
        if tensor is not None and tensor.dtype == dtype and _fits(tensor.shape, expected):
            continue
        seen = "is not there" if tensor is None else f"is {tensor.dtype} {list(tensor.shape)}"
        message = f"{path}: its {name} {seen}, its manifest promises {dtype} {list(expected)}. Export it again"
        raise BundleCorruptError(message)


def _promised_dtype(described: Mapping[str, Any], name: str) -> str:
    """Of an input or output: what the manifest says, "float32" where it says nothing."""
    try:
        values = {**described.get("inputs", {}), **described.get("outputs", {})}
        dtype = values.get(name, {}).get("dtype", "float32")
    except (AttributeError, TypeError) as error:
        message = f"its manifest does not list inputs and outputs by name, with their dtypes: {error}"
        raise BundleCorruptError(message) from error
    allowed = (_PIXELS_DTYPE,) if name == PIXELS else _IO_DTYPES
    if dtype not in allowed:
        message = f"its manifest promises {name} as {dtype!r}: this version takes {' or '.join(allowed)}"
        raise BundleCorruptError(message)
    return str(dtype)


def _fits(shape: Sequence[int | None], expected: Sequence[int | None]) -> bool:
    """Whether the sizes that are known agree. The batch has to be dynamic, and so has what may be of any size."""
    if len(shape) != len(expected) or shape[0] is not None:
        return False
    return all(size in (None, wanted) for size, wanted in zip(shape[1:], expected[1:], strict=True))
