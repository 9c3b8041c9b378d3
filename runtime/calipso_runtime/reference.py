"""The bundle's reference: pictures and what eager PyTorch says of them, to hold any engine to with numpy alone.

`reference.npz` holds, for N pictures of which the last `edge_cases` are none that anyone would classify:

    pixels      uint8 [N,H,W,3], at the graph's size; `preprocess.normalise` makes the graph's input of them. Of a
                bundle that takes pixels they are its input, [N,H,W,C]: at the size of the pictures that it takes, or,
                where it takes any, at that which it would resize to; or
    points      float32 [N,P,3], of a bundle that takes point clouds: the graph's input
    logits, and embedding and probabilities where the graph gives them: float32 [N,...], eager PyTorch's
    names       text [N]
    truth       int64 [N], class index, -1 where it is not known
    edge_cases  int64
    given       int64, how many pictures the export was verified on, edge cases aside

and of a bundle that takes any labels, whose logits are over M texts:

    token_ids       int64 [M,L]
    text_embedding  float32 [M,D], eager PyTorch's
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import Backend, HeadBackend
from calipso_runtime.bundle import PARITY_FILE, REFERENCE_FILE, Bundle
from calipso_runtime.errors import BackendError, BundleCorruptError, BundleError, UsageError
from calipso_runtime.manifest import EMBEDDING, IMAGE, LOGITS, PIXELS, POINTS, TEXT_EMBEDDING, TOKEN_IDS, Manifest
from calipso_runtime.parity import Answers, Gates, Parity, compare
from calipso_runtime.preprocess import normalise
from calipso_runtime.texts import TextHead

# What an engine is asked at: a single picture, the smallest real batch, and one that divides nothing.
BATCH_SIZES = (1, 2, 7)
_KEPT = {IMAGE: "pixels", POINTS: "points", PIXELS: "pixels"}
_NOT_OUTPUTS = (*_KEPT.values(), "names", "truth", "edge_cases", "given", TOKEN_IDS, TEXT_EMBEDDING)
# What NumPy raises on files that are no archive of arrays, or a damaged one.
_READING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    MemoryError,
    NotImplementedError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts that logits are over.

    Attributes:
        token_ids: int64 [M,L].
        features: float32 [M,D], L2-normalised, eager PyTorch's.
    """

    token_ids: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Pictures, and eager PyTorch's answers.

    Attributes:
        pixels: uint8 [N,*kept_shape]; or float32 [N,P,3], clouds of points.
        answers: eager PyTorch's.
        names: of the pictures.
        truth: class index of each, None where it is not known.
        edge_cases: so many of the last pictures are none that anyone would classify.
        given: how many pictures the export was verified on, edge cases aside: these are some of them, or all.
        texts: what the logits are over, where the bundle takes any labels.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    answers: Answers
    names: tuple[str, ...]
    truth: tuple[int | None, ...]
    edge_cases: int
    given: int
    texts: Texts | None = None

    @property
    def takes_points(self) -> bool:
        """Whether these are clouds of points, and no pictures."""
        return self.pixels.dtype == np.float32

    def images(self, places: Sequence[int], manifest: Manifest) -> npt.NDArray[Any]:
        """What the graph takes for some of them: see `Manifest.input_shape`."""
        return as_given(self.pixels[list(places)], manifest)


def as_given(kept: npt.NDArray[Any], manifest: Manifest) -> npt.NDArray[Any]:
    """What the graph takes for what is kept in the file."""
    if manifest.input_name != IMAGE:
        return kept
    return np.stack([normalise(each, manifest.preprocess) for each in kept])


def kept_shape(manifest: Manifest) -> tuple[int, ...]:
    """Of one item in the file."""
    if manifest.input_name == POINTS:
        return (int(manifest.input["points"]), 3)
    size, channels = manifest.preprocess.size, 3
    if (given := manifest.pixels) is not None:
        size, channels = given.size or size, len(given.channels)
    return (*size, channels)


def write_reference(path: Path, reference: Reference) -> None:
    """Write `reference.npz`: the same bytes for the same content."""
    arrays: dict[str, Any] = {
        _KEPT[POINTS if reference.takes_points else IMAGE]: reference.pixels,
        "names": np.array(reference.names, dtype=np.str_),
        "truth": np.array([-1 if label is None else label for label in reference.truth], dtype=np.int64),
        "edge_cases": np.int64(reference.edge_cases),
        "given": np.int64(reference.given),
        **reference.answers.outputs,
    }
    if reference.texts is not None:
        arrays |= {TOKEN_IDS: reference.texts.token_ids, TEXT_EMBEDDING: reference.texts.features}
    np.savez_compressed(path, **arrays)


def read_reference(bundle: Bundle) -> Reference | None:
    """The reference that a bundle carries.

    Args:
        bundle: whose hashes were checked.

    Returns:
        None for a bare `.onnx`, and for a bundle that was exported without, or before there was one.

    Raises:
        BundleCorruptError: its file is no reference, or not one of this bundle's graph.
    """
    if bundle.manifest is None or REFERENCE_FILE not in bundle.manifest.files:
        return None
    path = bundle.path / REFERENCE_FILE
    try:
        # NumPy leaves a file open that it opened itself and cannot read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        wrong = _misfit(arrays, bundle.manifest)
    except _READING_ERRORS as error:
        wrong = f"it cannot be read ({error})"
    if wrong is not None:
        message = f"{path} is no reference of this bundle: {wrong}. Export the bundle again"
        raise BundleCorruptError(message)
    return Reference(
        pixels=arrays[_KEPT[bundle.manifest.input_name]],
        answers=Answers(outputs={name: values for name, values in arrays.items() if name not in _NOT_OUTPUTS}),
        names=tuple(arrays["names"].tolist()),
        truth=tuple(None if label < 0 else label for label in arrays["truth"].tolist()),
        edge_cases=int(arrays["edge_cases"]),
        given=int(arrays["given"]),
        texts=Texts(token_ids=arrays[TOKEN_IDS], features=arrays[TEXT_EMBEDDING])
        if bundle.manifest.takes_labels
        else None,
    )


def read_gates(path: Path) -> Gates:
    """The gates that an export was held to, out of its `parity.json`.

    Raises:
        BundleCorruptError: the file tells none.
    """
    try:
        return Gates(**json.loads(path.read_text(encoding="utf-8"))["gates"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, UsageError) as error:
        message = f"{path} tells no gates that this version knows ({error}): export the bundle again"
        raise BundleCorruptError(message) from error


def batch_sizes(*ranges: tuple[int, int]) -> tuple[int, ...]:
    """What to ask an engine at that takes batches in these ranges only, each from lowest to highest.

    The ends of every range, and those of `BATCH_SIZES` that lie in one.
    """
    inside = {size for size in BATCH_SIZES if any(low <= size <= high for low, high in ranges)}
    return tuple(sorted(inside.union(*ranges)))


def verify_engine(engine: Backend, bundle: Bundle, *, batches: Sequence[int] = BATCH_SIZES) -> Parity:
    """Hold an engine to the gates of its bundle, on the pictures and eager answers that the bundle carries.

    Args:
        engine: of the bundle's graph, in whatever form. Each of its outputs that the reference has is compared.
        bundle: whose hashes were checked.
        batches: the batch sizes to ask, which are kept exactly: what is missing in the last batch is filled up
            with pictures that were asked already.

    Returns:
        What was measured, and which gates failed. Accuracy decides nothing where the bundle carries only some of
        the pictures that it was verified on: so few of them cannot tell.

    Raises:
        BundleError: the bundle carries no reference, or no gates.
        BundleCorruptError: the files of these are wrong.
        UsageError: no batch size, or one below 1.
        BackendError: the engine failed, or gives other outputs than the graph.
    """
    reference, manifest = read_reference(bundle), bundle.manifest
    if reference is None or manifest is None or PARITY_FILE not in manifest.files:
        message = (
            f"{bundle.path} carries no answers of eager PyTorch to hold an engine to: it is a bare graph, or was "
            "exported with --no-reference or by an older version. Export it again, or use `calipso verify`, which asks "
            "PyTorch"
        )
        raise BundleError(message)
    if not batches or min(batches) < 1:
        message = f"batch sizes are {', '.join(map(str, batches)) or 'none'}: expected at least one, each at least 1"
        raise UsageError(message)
    gates = read_gates(bundle.path / PARITY_FILE)
    real = len(reference.names) - reference.edge_cases
    if real < reference.given:
        gates = dataclasses.replace(gates, max_accuracy_drop=None)
    everything = list(range(len(reference.names)))
    engine = _over_texts(engine, reference, manifest)
    return compare(
        list(reference.names),
        reference.answers,
        {str(batch): (everything, _ask(engine, reference, manifest, batch)) for batch in batches},
        truth=list(reference.truth),
        gates=gates,
        about={
            "shipped": f"{engine.graph} through calipso_runtime, {engine.name} on {engine.provider}",
            "eager": f"the answers in {REFERENCE_FILE}",
            "pictures": {"source": REFERENCE_FILE, "count": real, "edge_cases": reference.edge_cases},
        },
        checks={},
        edge_cases=reference.edge_cases,
    )


def verify_texts(engine: Backend, bundle: Bundle) -> Parity:
    """Hold the text tower of a bundle to its gates: as `verify_engine`, with texts for pictures.

    What CLIP says of a text are its logits over pictures: over those that the bundle carries.

    Args:
        engine: takes token ids, and gives features.
        bundle: whose hashes were checked.

    Raises:
        BundleError: the bundle carries no reference with texts, or no gates.
        BackendError: the engine failed.
    """
    reference, manifest = read_reference(bundle), bundle.manifest
    if reference is None or reference.texts is None or manifest is None:
        message = f"{bundle.path} carries no texts and no answers to them: export it again, without --no-reference"
        raise BundleError(message)
    pictures, count = reference.answers.outputs[EMBEDDING], len(reference.texts.token_ids)
    scale = np.float32(manifest.model["logit_scale"])

    def answers(features: npt.NDArray[np.float32]) -> Answers:
        logits = (scale * features @ pictures.T).astype(np.float32, copy=False)
        return Answers(outputs={LOGITS: logits, EMBEDDING: features})

    shipped = {}
    for batch in BATCH_SIZES:
        some = np.array_split(reference.texts.token_ids, -(-count // batch))
        parts = [engine.run(ids, [TEXT_EMBEDDING])[TEXT_EMBEDDING] for ids in some]
        shipped[str(batch)] = list(range(count)), answers(np.concatenate(parts).astype(np.float32, copy=False))
    return compare(
        [f"text {place}" for place in range(count)],
        answers(reference.texts.features),
        shipped,
        truth=[None] * count,
        gates=read_gates(bundle.path / PARITY_FILE),
        about={
            "shipped": f"{engine.graph} through calipso_runtime, {engine.name} on {engine.provider}",
            "eager": f"the answers in {REFERENCE_FILE}",
            "pictures": {"source": REFERENCE_FILE, "count": len(pictures), "edge_cases": 0},
        },
        checks={},
    )


def _over_texts(engine: Backend, reference: Reference, manifest: Manifest) -> Backend:
    """The engine with what its logits are over, where they are over texts that a call names."""
    if reference.texts is None:
        return engine
    if any(tensor.name == TOKEN_IDS for tensor in engine.inputs):
        return cast("HeadBackend", engine).bind({TOKEN_IDS: reference.texts.token_ids})
    return TextHead(engine, reference.texts.features, manifest)


def _ask(engine: Backend, reference: Reference, manifest: Manifest, batch: int) -> Answers:
    """The engine's answers on all pictures, so many at a time."""
    count, wanted = len(reference.names), reference.answers.outputs
    given = {output.name for output in engine.outputs}
    if not given >= set(wanted):
        message = (
            f"{engine.name} gives {', '.join(sorted(given))}: the bundle's graph gives {', '.join(sorted(wanted))}"
        )
        raise BackendError(message)
    dtype = np.dtype(next(tensor.dtype for tensor in engine.inputs if tensor.name == manifest.input_name))
    # Round and round: every batch is full, as an engine may need it.
    places = np.resize(np.arange(count), -(-count // batch) * batch).reshape(-1, batch)
    parts = []
    for some in places.tolist():
        answers = engine.run(reference.images(some, manifest).astype(dtype, copy=False), tuple(wanted))
        parts.append(answers)
        for name, values in wanted.items():
            if answers[name].shape != (batch, *values.shape[1:]):
                message = (
                    f"{engine.name} answers {name} {list(answers[name].shape)} to a batch of {batch}, the bundle's "
                    f"graph answers {[batch, *values.shape[1:]]}"
                )
                raise BackendError(message)
    joined = {name: np.concatenate([part[name] for part in parts])[:count].astype(np.float32) for name in wanted}
    return Answers(outputs=joined)


def _misfit(arrays: dict[str, npt.NDArray[Any]], manifest: Manifest) -> str | None:
    """Why these arrays are not the reference of a graph with this manifest."""
    pixels = _KEPT[manifest.input_name]
    count = len(arrays[pixels])
    expected = {
        pixels: ("float32" if manifest.input_name == POINTS else "uint8", (count, *kept_shape(manifest))),
        "logits": ("float32", (count, len(manifest.labels))),
        "truth": ("int64", (count,)),
        "edge_cases": ("int64", ()),
        "given": ("int64", ()),
    }
    if manifest.takes_labels:
        # The logits are over the texts, however many there are.
        texts, width = len(arrays[TOKEN_IDS]), int(manifest.model["embed_dim"])
        expected |= {
            "logits": ("float32", (count, texts)),
            TOKEN_IDS: ("int64", (texts, int(manifest.tokenizer["context_length"]))),
            TEXT_EMBEDDING: ("float32", (texts, width)),
        }
    others = [name for name in arrays if name not in expected and name != "names"]
    expected |= {name: ("float32", (count, *arrays[name].shape[1:])) for name in others}
    for name, (dtype, shape) in expected.items():
        found = arrays[name]
        if (found.dtype.name, found.shape) != (dtype, shape):
            return f"{name} is {found.dtype} {list(found.shape)}, expected is {dtype} {list(shape)}"
    names, truth, edge_cases = arrays["names"], arrays["truth"], int(arrays["edge_cases"])
    if names.dtype.kind != "U" or names.shape != (count,) or not 0 <= edge_cases <= count or count == 0:
        return f"it has {count} pictures, {names.size} names and {edge_cases} edge cases"
    classes = arrays["logits"].shape[1]
    if truth.min() < -1 or truth.max() >= classes:
        return f"a picture is of class {truth.max()}, and there are {classes} classes"
    return None
