"""Loads a bundle: hashes first, then an engine, then whether the graph is the one that its manifest promises."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from calipso_runtime.asking import check_positive
from calipso_runtime.backends import AUTO, Backend, GpuOptions, HeadBackend, connect
from calipso_runtime.bundle import TOKENIZER_FILE, Bundle, open_bundle
from calipso_runtime.classifier import Classifier
from calipso_runtime.embedder import Embedder
from calipso_runtime.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    BundleError,
    CalipsoError,
    CalipsoWarning,
    UsageError,
)
from calipso_runtime.graph_checks import check_graph, check_text_graph, doubts, manifest_of_graph
from calipso_runtime.graph_file import ORT_FILES, ORT_TEXT_FILE, TEXT_FILE, check_seal
from calipso_runtime.head.file import is_input
from calipso_runtime.head.teacher import open_teacher
from calipso_runtime.manifest import TOKEN_IDS, Manifest
from calipso_runtime.texts import DEFAULT_CACHE_BYTES, Texts
from calipso_runtime.tokenizer import SILENT, Tokenizer, check_truncation

# A text tower runs on the engine of the pictures; where that is another, on the first of these that is there.
_TEXT_BACKENDS = ("ort-cuda", "ort", "openvino")

# `backends.connect`, with how it is asked for.
Connect: TypeAlias = Callable[..., tuple[Backend, str]]


def load(
    path: str | Path,
    *,
    backend: str = AUTO,
    threads: int | None = None,
    keep_optimised: bool = True,
    gpu: GpuOptions | None = None,
    require_signature: str | Path | None = None,
    taught: str | Path | bool = True,
    text_cache_bytes: int = DEFAULT_CACHE_BYTES,
    truncation: str = SILENT,
) -> Classifier:
    """Open a bundle, check every hash, and load its graph into an engine.

    Args:
        path: the bundle's directory, or a bare `.onnx` that Calipso exported.
        backend: "auto", or a name of `backends.ALL_BACKENDS`: "tensorrt", "ort", "ort-plugin:webgpu". "auto"
            takes the first that really runs here; TensorRT, or TensorRT for RTX, where `calipso build` made an engine
            for this GPU.
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
        text_cache_bytes: memory for features of labels and texts that come again, of a bundle that takes any.
        truncation: of labels and prompts with more tokens than the model's context: "silent" cuts them as open_clip
            does, "warn" says so, "error" refuses them.

    Raises:
        BundleNotFoundError: there is nothing there, or it is not a bundle.
        BundleCorruptError: a file is missing, truncated or edited.
        BundleSchemaError: it was written by a newer version.
        SignatureError: a required signature is missing, wrong or by another key.
        BackendUnavailableError: the backend asked for is not really on this machine.
        DeviceMemoryError: the engine does not fit into the GPU's memory.
        UsageError: there is no backend of this name, `threads` is below 1, or the key cannot be used.
        InputError: there is no such truncation.

    Warns:
        CalipsoWarning: the bundle was written although its parity gate had failed.
    """
    check_truncation(truncation)
    connecting = _connecting(backend, threads, gpu, keep_optimised=keep_optimised)
    opened = _opened(path, connecting, require_signature, remember=keep_optimised)
    engine, manifest = opened.engine, opened.manifest
    try:
        teacher = open_teacher(opened.bundle, manifest, taught) if is_input(manifest) else None
        if teacher is not None and teacher.head is not teacher.exported:
            engine = cast("HeadBackend", engine).bind(teacher.head.arrays())
    except CalipsoError:
        engine.close()
        raise
    for message in doubts(path, manifest):
        warnings.warn(message, CalipsoWarning, stacklevel=2)
    texts = opened.texts(text_cache_bytes, truncation) if manifest.takes_labels else None
    return Classifier(engine, manifest, backend_reason=opened.reason, teacher=teacher, texts=texts)


def load_embedder(
    path: str | Path,
    *,
    backend: str = AUTO,
    threads: int | None = None,
    keep_optimised: bool = True,
    gpu: GpuOptions | None = None,
    require_signature: str | Path | None = None,
    text_cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> Embedder:
    """Open a bundle with a text tower, for features of pictures and of texts.

    Args:
        path: see `load`, which takes the same.
        backend: see `load`.
        threads: see `load`.
        keep_optimised: see `load`.
        gpu: see `load`.
        require_signature: see `load`.
        text_cache_bytes: memory for features of texts that come again.

    Raises:
        UsageError: the bundle has no text tower.
        CalipsoError: see `load`.

    Warns:
        CalipsoWarning: see `load`.
    """
    connecting = _connecting(backend, threads, gpu, keep_optimised=keep_optimised)
    opened = _opened(path, connecting, require_signature, remember=keep_optimised)
    if not opened.manifest.takes_labels:
        opened.engine.close()
        message = (
            f"{path} has no text tower, its labels are fixed: export it again with --embed or --head-mode open, or use "
            "`load`, whose `embed` gives features of pictures"
        )
        raise UsageError(message)
    for message in doubts(path, opened.manifest):
        warnings.warn(message, CalipsoWarning, stacklevel=2)
    return Embedder(opened.engine, opened.manifest, opened.texts(text_cache_bytes), backend_reason=opened.reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """A bundle whose graph an engine has, which is asked for pictures alone."""

    bundle: Bundle
    manifest: Manifest
    engine: Backend
    reason: str
    open_text: Callable[[], Backend]

    def texts(self, cache_bytes: int, truncation: str = SILENT) -> Texts:
        """What encodes texts; nothing of it is opened before the first one."""
        path = self.bundle.model_path.with_name(TOKENIZER_FILE)
        open_tokenizer = functools.partial(Tokenizer.from_file, path, self.manifest.tokenizer)
        return Texts(self.open_text, open_tokenizer, self.manifest, cache_bytes=cache_bytes, truncation=truncation)


def _connecting(backend: str, threads: int | None, gpu: GpuOptions | None, *, keep_optimised: bool) -> Connect:
    if threads is not None:
        check_positive("threads", threads, UsageError)
    return functools.partial(connect, backend=backend, threads=threads, keep_optimised=keep_optimised, gpu=gpu)


def _opened(path: str | Path, connecting: Connect, key: str | Path | None, *, remember: bool) -> _Opened:
    try:
        bundle = open_bundle(path, remember=remember, require_signature=key)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise BundleError(message) from error
    engine, reason = connecting(bundle)
    try:
        manifest = manifest_of_graph(bundle, engine)
        check_graph(engine, manifest, bundle.model_path)
        images, open_text = towers(bundle, manifest, engine, connecting)
    except CalipsoError:
        engine.close()
        raise
    return _Opened(bundle=bundle, manifest=manifest, engine=images, reason=reason, open_text=open_text)


def towers(
    bundle: Bundle, manifest: Manifest, engine: Backend, connecting: Connect
) -> tuple[Backend, Callable[[], Backend]]:
    """What is asked for pictures alone, and what opens that which is asked for texts alone.

    Args:
        bundle: whose hashes were checked.
        manifest: what it says.
        engine: of its graph.
        connecting: opens a text tower that is a graph of its own.
    """
    if all(each.name != TOKEN_IDS for each in engine.inputs):
        return engine, functools.partial(_text_tower, bundle, manifest, engine.name, connecting)
    # One graph: the input that is not asked about is given as little as can be.
    whole, image = cast("HeadBackend", engine), manifest.input_name
    open_text = functools.partial(whole.bind, {image: _something(engine, image)})
    return whole.bind({TOKEN_IDS: _something(engine, TOKEN_IDS)}), open_text


def _something(engine: Backend, name: str) -> npt.NDArray[np.generic]:
    """Zeros that an input takes, a batch of one: not every engine takes a batch of none."""
    tensor = next(each for each in engine.inputs if each.name == name)
    return np.zeros([size or 1 for size in tensor.shape], tensor.dtype)


def _text_tower(bundle: Bundle, manifest: Manifest, backend: str, connecting: Connect) -> Backend:
    """The text tower that is a graph of its own, on the engine of the pictures where it can be."""
    path = bundle.model_path.with_name(ORT_TEXT_FILE if bundle.model_path.name in ORT_FILES.values() else TEXT_FILE)
    if bundle.manifest is None:
        if not path.is_file():
            message = f"{path} is missing: the text tower of {bundle.path.name} is a graph of its own. Copy both"
            raise BundleCorruptError(message)
        text = Bundle(path=path, model_path=path, manifest=None, digest=check_seal(path))
    else:
        ort_path = bundle.path / ORT_TEXT_FILE if ORT_TEXT_FILE in bundle.manifest.files else None
        # Of a bundle with one graph there is ONNX Runtime's alone.
        model_path = path if TEXT_FILE in bundle.manifest.files or ort_path is None else ort_path
        text = dataclasses.replace(bundle, model_path=model_path, ort_model_path=ort_path)
    engine = _first(text, (backend,) if backend in _TEXT_BACKENDS else _TEXT_BACKENDS, connecting)
    try:
        check_text_graph(engine, manifest, path)
    except CalipsoError:
        engine.close()
        raise
    return engine


def _first(bundle: Bundle, backends: Sequence[str], connecting: Connect) -> Backend:
    """The first of these backends that is there."""
    for backend in backends[:-1]:
        with contextlib.suppress(BackendUnavailableError):
            return connecting(bundle, backend=backend)[0]
    return connecting(bundle, backend=backends[-1])[0]
