"""Asks sessions of ONNX Runtime through IO binding: the input lies in the device's own memory, which is used again.

On CUDA the whole graph can be captured as one CUDA graph per batch shape, which costs one launch instead of
hundreds. onnxruntime asks three things for it (its page on the CUDA provider): shapes and addresses that stay the
same, an id for each shape in the run option `gpu_graph_id` (-1 runs without), and one thread: what is captured
belongs to the thread that ran it.
"""

import collections
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import free_input
from calipso_runtime.backends.ort import ORT_ERRORS, OrtValue, RunOptions, Session, run_options

# A session in memory keeps its input buffers, and its graphs, for so many shapes.
MOST_SHAPES = 8
_NO_GRAPH = -1
_DEVICE = 0
# A replay runs the same kernels as a plain run; what is off by more is not the same computation.
_TOLERANCE = 1e-2

Array: TypeAlias = npt.NDArray[np.floating]
# Shape and dtype of the input, and the outputs that are asked for.
_Key: TypeAlias = tuple[tuple[int, ...], str, tuple[str, ...]]
_log = logging.getLogger(__name__)


class BoundSession:
    """Answers batches of one session. `run` may be called from several threads at once: each takes its own memory.

    Args:
        session: whose input is `image` or `points`.
        device: where the input is put, "cpu" or "cuda"; outputs come back to the host.
        graph: the id of the graph that runs are of, where the session captures graphs.
        held: further inputs, by name: put on the device once.
    """

    def __init__(
        self,
        session: Session,
        device: str,
        *,
        graph: int | None = None,
        held: Mapping[str, npt.NDArray[np.generic]] | None = None,
    ) -> None:
        self._session = session
        self._held = {
            name: OrtValue.ortvalue_from_numpy(values, device, _DEVICE) for name, values in (held or {}).items()
        }
        self._device = device
        self._options = _options(graph)
        self._lock = threading.Lock()
        self._idle: collections.OrderedDict[_Key, list[_Binding]] = collections.OrderedDict()

    def run(self, image: Array, outputs: Sequence[str]) -> dict[str, Array]:
        """Answer a batch. Raises onnxruntime's own errors; memory of a call that failed is not used again."""
        key = _key(image, outputs)
        binding = self._take(key) or _Binding(self._session, image, outputs, self._device, held=self._held)
        answers = binding.run(image, self._options)
        self._give_back(key, binding)
        return answers

    def close(self) -> None:
        """Nothing to end: memory is freed with the session."""

    def _take(self, key: _Key) -> "_Binding | None":
        with self._lock:
            waiting = self._idle.get(key)
            return waiting.pop() if waiting else None

    def _give_back(self, key: _Key, binding: "_Binding") -> None:
        with self._lock:
            self._idle.setdefault(key, []).append(binding)
            self._idle.move_to_end(key)
            if len(self._idle) > MOST_SHAPES:
                self._idle.popitem(last=False)


class GraphSession:
    """Answers with one captured CUDA graph per shape, in one thread; callers in other threads wait for their turn.

    A shape is captured when it comes for the second time, and only the first `MOST_SHAPES` of them: onnxruntime
    cannot forget a graph, and each keeps memory. A graph is captured on zeros, then replayed on the batch and
    compared with a plain run of it. Where capturing fails, or the answers differ, all later batches run plainly.

    Args:
        session: opened with CUDA graphs.
        open_plain: opens the same without. Asked where capturing fails: a session cannot be trusted after that.
        device: "cuda", or "cpu" to run the same code without a GPU.

    Attributes:
        refusal: why nothing is captured any more, or None.
    """

    def __init__(self, session: Session, open_plain: Callable[[], Session], device: str) -> None:
        self.refusal: str | None = None
        self._session: Session | None = session
        self._open_plain = open_plain
        self._device = device
        self._plain: BoundSession | None = BoundSession(session, device, graph=_NO_GRAPH)
        self._seen: set[_Key] = set()
        self._graphs: dict[_Key, tuple[_Binding, RunOptions]] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="calipso-cuda-graphs")

    def run(self, image: Array, outputs: Sequence[str]) -> dict[str, Array]:
        """Answer a batch. Raises onnxruntime's own errors."""
        return self._thread.submit(self._run, image, outputs).result()

    def close(self) -> None:
        """Answer who waits, and end the thread."""
        self._thread.shutdown()

    def _run(self, image: Array, outputs: Sequence[str]) -> dict[str, Array]:
        key = _key(image, outputs)
        if (graph := self._graphs.get(key)) is not None:
            binding, options = graph
            return binding.run(image, options)
        if self._plain is None:
            self._plain = BoundSession(self._open_plain(), self._device)
        answers = self._plain.run(image, outputs)
        if self._session is not None and key in self._seen and len(self._graphs) < MOST_SHAPES:
            self._capture(self._session, key, image, answers)
        # Bounded, for whoever sends a new shape each time.
        if len(self._seen) < MOST_SHAPES * MOST_SHAPES:
            self._seen.add(key)
        return answers

    def _capture(self, session: Session, key: _Key, image: Array, expected: dict[str, Array]) -> None:
        options = _options(len(self._graphs) + 1)
        try:
            binding = _Binding(session, image, tuple(expected), self._device, fixed=expected)
            # onnxruntime runs it as often as it has to, the last time captured.
            binding.run(np.zeros_like(image), options)
            found = binding.run(image, options)
        except ORT_ERRORS as error:
            self._give_up(f"capturing a batch of shape {list(image.shape)} failed: {error}")
            return
        different = [name for name in expected if not _same(found[name], expected[name])]
        if different:
            self._give_up(f"a captured batch of shape {list(image.shape)} gives other {', '.join(different)}")
            return
        self._graphs[key] = (binding, options)

    def _give_up(self, reason: str) -> None:
        self.refusal = reason
        _log.warning("CUDA graphs are off from here, answers are computed without: %s", reason)
        self._graphs.clear()
        # The next batch opens another session: this one's memory is free by then.
        self._session = self._plain = None


class _Binding:
    """Input memory for batches of one shape, bound to a session. For one call at a time.

    Args:
        session: whose input is `image`.
        image: a batch of the shape.
        outputs: names.
        device: where the input lies.
        fixed: arrays like the outputs, where these too have to lie on the device at the same address every time;
            else every run puts them into memory of the host.
        held: further inputs, which stay.
    """

    def __init__(
        self,
        session: Session,
        image: Array,
        outputs: Sequence[str],
        device: str,
        *,
        fixed: dict[str, Array] | None = None,
        held: Mapping[str, OrtValue] | None = None,
    ) -> None:
        self._session = session
        self._names = tuple(outputs)
        self._binding = session.io_binding()
        self._input = OrtValue.ortvalue_from_shape_and_type(image.shape, image.dtype.type, device, _DEVICE)
        name = free_input((node.name for node in session.get_inputs()), held or ())
        self._binding.bind_ortvalue_input(name, self._input)
        for name, held_value in (held or {}).items():
            self._binding.bind_ortvalue_input(name, held_value)
        for name in self._names:
            if fixed is None:
                self._binding.bind_output(name, "cpu")
                continue
            like = fixed[name]
            value = OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype.type, device, _DEVICE)
            self._binding.bind_ortvalue_output(name, value)

    def run(self, image: Array, options: RunOptions) -> dict[str, Array]:
        self._input.update_inplace(np.ascontiguousarray(image))
        self._session.run_with_iobinding(self._binding, options)
        # Copied: on the CPU these are the session's own memory.
        return {
            name: np.array(value.numpy()) for name, value in zip(self._names, self._binding.get_outputs(), strict=True)
        }


def _key(image: Array, outputs: Sequence[str]) -> _Key:
    return image.shape, image.dtype.name, tuple(outputs)


def _options(graph: int | None) -> RunOptions:
    options = run_options()
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _same(found: Array, expected: Array) -> bool:
    wide = expected.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0.0)
    return bool(np.allclose(found.astype(np.float64), wide, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True))
