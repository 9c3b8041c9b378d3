"""Answer `x.npy` with every graph of a folder, on the CPU that runs this: python answer_graphs.py FOLDER ENGINE

For each `NAME.onnx` the answer is written to `NAME.npy`. It needs numpy and the engine alone.
"""

import sys
from pathlib import Path

import numpy as np


def main(folder: Path, engine: str) -> None:
    """Run all graphs."""
    for path in sorted(folder.glob("*.onnx")):
        x = np.load(path.with_suffix(".x.npy"))
        answer = with_openvino(path, x) if engine == "openvino" else with_onnxruntime(path, x)
        np.save(path.with_suffix(".npy"), answer)


def with_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    """As any host runs a graph: with all optimisations, and nothing set."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def with_openvino(path: Path, x: np.ndarray) -> np.ndarray:
    """Likewise, in fp32 where it is not in int8."""
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(model(x)[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
