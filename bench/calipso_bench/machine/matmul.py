"""The fp32 matrix product of each engine: the fastest any of them gets is the peak.

No single library is the peak everywhere: on some CPUs one reaches half of what another does.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]
Product = Callable[[], object]
Clock = Callable[[], float]

# Square matrices: large enough for full speed, small enough to stay in most caches.
SIZES = (768, 1024, 2048)
_SECONDS = 0.8
_LEAST_CALLS = 3
# The pool of the engine before may still be spinning.
_PAUSE_S = 0.1
_OPSET = 18


def by_engine(threads: int, *, clock: Clock = time.perf_counter) -> dict[str, float]:
    """GFLOP/s of every engine that is installed, numpy's BLAS at least.

    Args:
        threads: as many as each engine may use.
        clock: in seconds; `time.process_time` where one thread shares its core with other programs.
    """
    generator = np.random.default_rng(0)
    found: dict[str, float] = {}
    for size in SIZES:
        first, second = (generator.standard_normal((size, size), dtype=np.float32) for _ in range(2))
        for name, product in _engines(first, second, threads):
            time.sleep(_PAUSE_S)
            found[name] = max(found.get(name, 0.0), 2 * size**3 / _fastest_s(product, clock) / 1e9)
    return found


def _engines(first: Float32, second: Float32, threads: int) -> Iterator[tuple[str, Product]]:
    for name, make in (("numpy", _numpy), ("torch", _torch), ("onnxruntime", _onnxruntime), ("openvino", _openvino)):
        try:
            product = make(first, second, threads)
        except ImportError:
            continue
        yield name, product


def _fastest_s(product: Product, clock: Clock) -> float:
    product()
    fastest, spent, calls = float("inf"), 0.0, 0
    while spent < _SECONDS or calls < _LEAST_CALLS:
        started = clock()
        product()
        took = clock() - started
        fastest, spent, calls = min(fastest, took), spent + took, calls + 1
    return fastest


def _numpy(first: Float32, second: Float32, threads: int) -> Product:
    from threadpoolctl import threadpool_limits

    out = np.empty_like(first)

    def product() -> None:
        with threadpool_limits(threads, user_api="blas"):
            np.matmul(first, second, out=out)

    return product


def _torch(first: Float32, second: Float32, threads: int) -> Product:
    import torch

    one, other = torch.from_numpy(first), torch.from_numpy(second)
    out = torch.empty_like(one)

    def product() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.mm(one, other, out=out)

    return product


def _onnxruntime(first: Float32, second: Float32, threads: int) -> Product:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_graph(second), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": first})


def _openvino(first: Float32, second: Float32, threads: int) -> Product:
    import openvino
    from openvino import opset8

    parameter = opset8.parameter(list(first.shape), np.float32, name="x")
    model = openvino.Model([opset8.matmul(parameter, opset8.constant(second), False, False)], [parameter], "product")  # noqa: FBT003
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([first], share_inputs=True)


def _graph(second: Float32) -> bytes:
    """Y = x @ second, with the second factor a constant that an engine may pack."""
    from onnx import TensorProto, helper, numpy_helper

    shape = list(second.shape)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "second"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(second, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    serialised: bytes = model.SerializeToString()
    return serialised
