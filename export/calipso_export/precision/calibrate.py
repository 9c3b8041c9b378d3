"""Measures the ranges of activations on pictures, a batch at a time; interrupted, it goes on where it stopped."""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from calipso_export.precision.quantised import quantisable
from calipso_export.precision.ranges import BINS, Histogram
from calipso_export.precision.run import open_graph
from calipso_export.progress import Progress
from calipso_runtime.errors import CalibrationError

# Activations of one batch that are held at once.
_BATCH_BYTES = 256 * 2**20
_MOST_AT_ONCE = 16
_SAVE_EVERY = 8
FORMAT = 1


def wanted(graph: ir.Graph) -> list[str]:
    """Names of the values whose ranges a quantised graph needs."""
    return list(dict.fromkeys(str(node.inputs[0].name) for node in quantisable(graph) if node.inputs[0] is not None))


def collect(
    model: ir.Model,
    count: int,
    batch_of: Callable[[Sequence[int]], npt.NDArray[np.float32]],
    *,
    keep: Path | None,
    progress: Progress,
) -> dict[str, Histogram]:
    """Count the magnitudes of every value that will be quantised.

    Args:
        model: the fp32 graph; left as it is.
        count: how many pictures there are.
        batch_of: preprocesses some of them, by index: float32 [B,3,H,W].
        keep: file that holds what was counted so far, of these pictures and this graph; written now and then,
            and when interrupted. None keeps nothing.
        progress: told after each batch.

    Raises:
        CalibrationError: an activation is NaN or infinite.
    """
    histograms, done = _restored(keep)
    names = wanted(model.graph)
    histograms = histograms or {name: Histogram() for name in names}
    what = "measuring ranges of activations"
    progress(what, done, count)
    if done >= count:
        return histograms
    with tempfile.TemporaryDirectory() as folder:
        session = _with_outputs(model, names, Path(folder))
        size = 1
        since_saved = 0
        try:
            while done < count:
                indices = range(done, min(count, done + size))
                values = session.run(names, {session.get_inputs()[0].name: batch_of(indices)})
                _add(histograms, names, values, indices)
                done += len(indices)
                since_saved += 1
                if since_saved == _SAVE_EVERY:
                    _save(keep, histograms, done)
                    since_saved = 0
                bytes_each = sum(value.nbytes for value in values) / len(indices)
                size = int(max(1, min(_MOST_AT_ONCE, _BATCH_BYTES // bytes_each)))
                progress(what, done, count)
        finally:
            # On Ctrl-C too.
            _save(keep, histograms, done)
    return histograms


def digest(model: ir.Model, contents: Iterable[bytes]) -> str:
    """Of a graph and whatever else decides what is measured on it: what may be kept under this name."""
    nodes = " ".join(f"{node.op_type} {node.name} {node.outputs[0].name}" for node in model.graph)
    found = hashlib.sha256(f"{FORMAT} {BINS} {onnxruntime.__version__} {nodes}".encode())
    for name, value in sorted(model.graph.initializers.items()):
        found.update(name.encode())
        if value.const_value is not None:
            found.update(hashlib.sha256(value.const_value.tobytes()).digest())
    for content in contents:
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()


def _with_outputs(model: ir.Model, names: Sequence[str], folder: Path) -> onnxruntime.InferenceSession:
    clone = model.clone()
    values = {value.name: value for node in clone.graph for value in node.outputs} | {
        value.name: value for value in clone.graph.inputs
    }
    clone.graph.outputs.clear()
    clone.graph.outputs.extend(values[name] for name in names)
    return open_graph(clone, folder)


def _add(
    histograms: dict[str, Histogram], names: Sequence[str], values: Sequence[npt.NDArray[np.float32]], indices: range
) -> None:
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value).all():
            message = (
                f"calibration pictures {indices.start} to {indices.stop - 1} make the activation {name} NaN or "
                "infinite: the model cannot be quantised on them"
            )
            raise CalibrationError(message)
        histograms[name].add(value)


def _save(keep: Path | None, histograms: dict[str, Histogram], done: int) -> None:
    if keep is None:
        return
    keep.parent.mkdir(parents=True, exist_ok=True)
    names = list(histograms)
    with tempfile.NamedTemporaryFile(dir=keep.parent, suffix=".partial", delete=False) as stream:
        np.savez_compressed(
            stream,
            done=np.array(done),
            names=np.array(names),
            counts=np.stack([histograms[name].counts for name in names]),
            limits=np.array([histograms[name].limit for name in names]),
            peaks=np.array([histograms[name].peak for name in names]),
        )
    os.replace(stream.name, keep)  # noqa: PTH105 - Path.replace of a NamedTemporaryFile's name says no more


def _restored(keep: Path | None) -> tuple[dict[str, Histogram], int]:
    """What an earlier, interrupted run counted; nothing where its file is damaged."""
    if keep is None or not keep.is_file():
        return {}, 0
    try:
        # Opened here: NumPy does not close a file that turns out to be no archive.
        with keep.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            histograms = {
                str(name): Histogram(counts=counts.astype(np.int64), limit=float(limit), peak=float(peak))
                for name, counts, limit, peak in zip(
                    arrays["names"], arrays["counts"], arrays["limits"], arrays["peaks"], strict=True
                )
            }
            return histograms, int(arrays["done"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return {}, 0
