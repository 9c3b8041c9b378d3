"""Loads a bundle: hashes first, then an engine, then whether the graph is the one that its manifest promises."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from calipso_runtime import devices
from calipso_runtime.asking import LOGITS, check_positive
from calipso_runtime.backends import AUTO, Backend, GpuOptions, HeadBackend, connect
from calipso_runtime.bundle import PIXELS, Bundle, Manifest, manifest_of_metadata, open_bundle
from calipso_runtime.classifier import Classifier
from calipso_runtime.errors import BundleCorruptError, BundleError, CalipsoError, CalipsoWarning, UsageError
from calipso_runtime.head.file import is_input
from calipso_runtime.head.teacher import open_teacher

_IO_DTYPES = ("float32", "float16")
_PIXELS_DTYPE = "uint8"


def load(
    path: str | Path,
    *,
    backend: str = AUTO,
    threads: int | None = None,
    keep_optimised: bool = True,
    gpu: GpuOptions | None = None,
    require_signature: str | Path | None = None,
    taught: str | Path | bool = True,
) -> Classifier:
    """Open a bundle, check every hash, and load its graph into an engine.

    Args:
        path: the bundle's directory, or a bare `.onnx` that Calipso exported.
        backend: "auto", or a name of `backends.BACKENDS`: "tensorrt", "ort-cuda", "ort", "openvino". "auto" takes the
            first that really runs here; TensorRT where `calipso build` made an engine for this GPU.
        threads: of the engine on the CPU; None is one per physical core.
        keep_optimised: let an engine keep a large graph, as it optimised it for this CPU, in the user's cache
            folder ($CALIPSO_CACHE), so that the next process starts faster and with less memory. It takes about as
            much disk as the bundle. Hashes of large files that have not changed since are remembered there too.
        gpu: how a GPU is used: batches under way at once, CUDA graphs, which engine.
        require_signature: PEM file of an Ed25519 public key. The manifest's signature by it is verified before anything
            else of the bundle is read, and that of an engine's record before the engine is loaded; every file is
            hashed anew.
        taught: where what the bundle is taught is kept, if its head is an input: True is the folder `taught` in it;
            name another where the bundle is read-only. False leaves aside what it was taught, and keeps nothing.

    Raises:
        BundleNotFoundError: there is nothing there, or it is not a bundle.
        BundleCorruptError: a file is missing, truncated or edited.
        BundleSchemaError: it was written by a newer version.
        SignatureError: a required signature is missing, wrong or by another key.
        BackendUnavailableError: the backend asked for is not really on this machine.
        DeviceMemoryError: the engine does not fit into the GPU's memory.
        UsageError: there is no backend of this name, `threads` is below 1, or the key cannot be used.

    Warns:
        CalipsoWarning: the bundle was written although its parity gate had failed; or its 8-bit weights may
            saturate on this CPU.
    """
    if threads is not None:
        check_positive("threads", threads, UsageError)
    try:
        bundle = open_bundle(path, remember=keep_optimised, require_signature=require_signature)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise BundleError(message) from error
    engine, reason = connect(bundle, backend=backend, threads=threads, keep_optimised=keep_optimised, gpu=gpu)
    try:
        manifest = _manifest(bundle, engine)
        _check_graph(engine, manifest, bundle.model_path)
        teacher = open_teacher(bundle, manifest, taught) if is_input(manifest) else None
        if teacher is not None and teacher.head is not teacher.exported:
            engine = cast("HeadBackend", engine).bind(teacher.head.arrays())
    except CalipsoError:
        engine.close()
        raise
    if manifest.parity == "failed":
        message = (
            f"{path} failed its parity gate: it does not answer like the model it was exported from. "
            "See its parity.json, and export it again"
        )
        warnings.warn(message, CalipsoWarning, stacklevel=2)
    if engine.name == "ort" and _saturates(manifest):
        message = (
            f"{path} holds 8-bit weights, which this CPU (no VNNI) may add up with saturation: answers can be wrong. "
            "Check them with `calipso verify`, or export again with --reduce-range"
        )
        warnings.warn(message, CalipsoWarning, stacklevel=2)
    return Classifier(engine, manifest, backend_reason=reason, teacher=teacher)


def _manifest(bundle: Bundle, engine: Backend) -> Manifest:
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


def _check_graph(engine: Backend, manifest: Manifest, path: Path) -> None:
    """Refuse a graph whose inputs and outputs are not those that its manifest promises."""
    found = {tensor.name: tensor for tensor in (*engine.inputs, *engine.outputs)}
    promised = {manifest.input_name: (None, *manifest.input_shape), LOGITS: (None, len(manifest.labels))}
    for name, expected in promised.items():
        tensor = found.get(name)
        dtype = _promised_dtype(manifest, name)
        if tensor is not None and tensor.dtype == dtype and _fits(tensor.shape, expected):
            continue
        seen = "is not there" if tensor is None else f"is {tensor.dtype} {list(tensor.shape)}"
        message = f"{path}: its {name} {seen}, its manifest promises {dtype} {list(expected)}. Export it again"
        raise BundleCorruptError(message)


def _saturates(manifest: Manifest) -> bool:
    """Whether eight-bit products may overflow the 16 bits in which x86 CPUs without VNNI add two of them."""
    if not manifest.precision.startswith("int8") or manifest.graph.get("precision", {}).get("reduce_range"):
        return False
    return devices.has_x86_vectors() and not devices.has_vnni()


def _promised_dtype(manifest: Manifest, name: str) -> str:
    """Of an input or output: what the manifest says, "float32" where it says nothing."""
    try:
        values = {**manifest.graph.get("inputs", {}), **manifest.graph.get("outputs", {})}
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
