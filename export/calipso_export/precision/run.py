"""Runs a graph that lies in memory: for choices and searches. What ships is verified through the runtime."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from calipso_export.precision.emulate import emulate, needs_emulation
from calipso_runtime import devices
from calipso_runtime.backends.ort import UNSIGNED_WEIGHTS
from calipso_runtime.manifest import TEXT_EMBEDDING

Answer = Callable[[npt.NDArray[np.float32]], dict[str, npt.NDArray[np.float32]]]
_FATAL = 4


@contextmanager
def answering(model: ir.Model) -> Iterator[Answer]:
    """Open a graph, optimised as the runtime would; 16-bit and fp8 ones are emulated."""
    with tempfile.TemporaryDirectory() as folder:
        computed = emulate(model.clone()) if needs_emulation(model) else model
        session = open_graph(computed, Path(folder), optimised=True)
        entry = session.get_inputs()[0]
        # Features of texts are of no picture: what they are off by is in the logits.
        names = [output.name for output in session.get_outputs() if output.name != TEXT_EMBEDDING]

        def answer(image: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
            given = image.astype(np.float16) if entry.type == "tensor(float16)" else image
            values = session.run(names, {entry.name: given})
            return {name: value.astype(np.float32) for name, value in zip(names, values, strict=True)}

        yield answer


def open_graph(model: ir.Model, folder: Path, *, optimised: bool = False) -> onnxruntime.InferenceSession:
    """Load a graph through files in a folder, whatever its size.

    Args:
        model: its initializers end up in memory, as they are.
        folder: has to outlive the session.
        optimised: let the engine rewrite the graph; else it runs as it stands.
    """
    path = folder / "graph.onnx"
    ir.save(model.clone(), path, external_data="graph.data")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    if devices.adds_pairs_in_16_bits():
        options.add_session_config_entry(UNSIGNED_WEIGHTS, "1")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
