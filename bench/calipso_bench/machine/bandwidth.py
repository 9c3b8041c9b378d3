"""Memory bandwidth: reading and copying arrays that no cache holds, on several threads at once."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

_BYTES = 256 << 20
_CALLS = 7


def read_gb_s(threads: int) -> float:
    """GB read per second by a dot product of an array with itself."""
    from threadpoolctl import threadpool_limits

    chunks = _chunks(threads)
    # BLAS without the interpreter's lock, one thread per chunk.
    with threadpool_limits(1, user_api="blas"):
        return _rate(lambda chunk: np.dot(chunk, chunk), chunks)


def copy_gb_s(threads: int) -> float:
    """GB read and written per second by copying an array: both directions count."""
    chunks = [np.stack([chunk, chunk]) for chunk in _chunks(threads)]
    return _rate(lambda pair: np.copyto(pair[0], pair[1]), chunks)


def _chunks(threads: int) -> list[npt.NDArray[np.float32]]:
    values = _BYTES // np.dtype(np.float32).itemsize // threads
    return [np.full(values, place + 1, np.float32) for place in range(threads)]


def _rate(work: Callable[[npt.NDArray[np.float32]], object], chunks: list[npt.NDArray[np.float32]]) -> float:
    total = sum(chunk.nbytes for chunk in chunks)
    fastest = float("inf")
    with ThreadPoolExecutor(len(chunks)) as pool:
        for _ in range(_CALLS):
            started = time.perf_counter()
            list(pool.map(work, chunks))
            fastest = min(fastest, time.perf_counter() - started)
    return total / fastest / 1e9
