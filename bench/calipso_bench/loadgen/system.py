"""The system under test, as LoadGen calls it: a queue, and one worker that answers.

LoadGen's own threads only put queries on the queue. No exception may pass through them: LoadGen is
left unusable, and the process ends with it. So a failure in the worker is kept, what is still asked
is answered with nothing, and the failure is raised when LoadGen has ended.
"""

import array
import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from calipso_export.progress import batches
from calipso_runtime import Classifier
from calipso_runtime.asking import DEFAULT_BATCH

# Samples of one query that are computed together: what the runtime does by itself.
BATCH = DEFAULT_BATCH
TOP = 5
# Four bytes each: what an answer is in the log of accuracy mode.
ANSWER_TYPE = "i"
_POLL_S = 0.2
# Between the answers without content that end an interrupted run: it lasts as long as was planned.
_PAUSE_S = 0.01


class System:
    """Answers LoadGen's queries with a classifier.

    Args:
        harness: the module `mlperf_loadgen`.
        classifier: what is measured.
        pictures: encoded; a sample's index is its place here.

    Attributes:
        stop: set it to answer without computing from now on.
    """

    def __init__(self, harness: ModuleType, classifier: Classifier, pictures: Sequence[bytes]) -> None:
        self.count = len(pictures)
        self.stop = threading.Event()
        self._harness = harness
        self._classifier = classifier
        self._pictures = pictures
        self._in_memory: dict[int, bytes] = {}
        self._queue: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()

    def load(self, indices: Sequence[int]) -> None:
        """Take samples into memory: encoded, so that decoding is timed."""
        self._in_memory.update((index, self._pictures[index]) for index in indices)

    def unload(self, _indices: Sequence[int]) -> None:
        """Forget what was loaded."""
        self._in_memory.clear()

    def issue(self, samples: Sequence[Any]) -> None:
        """Take a query; return at once."""
        self._queue.put(list(samples))

    def flush(self) -> None:
        """Nothing is held back."""

    def end(self) -> None:
        """Let the worker return when it has answered all that was asked."""
        self._queue.put(None)

    def work(self) -> None:
        """Answer until `end`; what the classifier raises is raised here, but only then."""
        waiting: list[Any] | None = []
        try:
            while waiting is not None:
                for some in list(batches(waiting, BATCH)):
                    self._answer(some)
                    waiting = waiting[len(some) :]
                waiting = self._queue.get()
        finally:
            while waiting is not None:
                self._complete(waiting, [[]] * len(waiting))
                waiting = self._queue.get()

    def _answer(self, samples: Sequence[Any]) -> None:
        if self.stop.is_set():
            time.sleep(_PAUSE_S)
            self._complete(samples, [[]] * len(samples))
            return
        pictures = [self._in_memory[sample.index] for sample in samples]
        predictions = self._classifier.classify(pictures, top=TOP, batch=BATCH)
        self._complete(samples, [[score.index for score in prediction] for prediction in predictions])

    def _complete(self, samples: Sequence[Any], answers: Sequence[Sequence[int]]) -> None:
        # LoadGen reads the memory behind the address before the call returns: it has to live so long.
        arrays = [array.array(ANSWER_TYPE, answer) for answer in answers]
        responses = []
        for sample, values in zip(samples, arrays, strict=True):
            address, length = values.buffer_info()
            responses.append(self._harness.QuerySampleResponse(sample.id, address, length * values.itemsize))
        self._harness.QuerySamplesComplete(responses)


def drive(harness: ModuleType, system: System, settings: Any, logs: Path, waiting: Callable[[], None]) -> None:
    """Run one test of LoadGen to its end.

    LoadGen gets a thread of its own: Python raises KeyboardInterrupt in the main thread, which must
    not be inside LoadGen then.

    Args:
        harness: the module `mlperf_loadgen`.
        system: what is asked.
        settings: a `TestSettings`.
        logs: the folder for LoadGen's logs.
        waiting: called a few times per second.

    Raises:
        CalipsoError: whatever the classifier raised.
        KeyboardInterrupt: after LoadGen has ended, which it does at its planned time.
    """
    log_settings = harness.LogSettings()
    log_settings.log_output.outdir = str(logs)
    log_settings.log_output.copy_summary_to_stdout = False
    log_settings.enable_trace = False
    under_test = harness.ConstructSUT(system.issue, system.flush)
    library = harness.ConstructQSL(system.count, system.count, system.load, system.unload)
    try:
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as threads:
            worker = threads.submit(system.work)
            test = threads.submit(harness.StartTestWithLogSettings, under_test, library, settings, log_settings)
            test.add_done_callback(lambda _: system.end())
            try:
                while not test.done():
                    waiting()
                    concurrent.futures.wait([test, worker], _POLL_S, return_when="FIRST_COMPLETED")
            finally:
                system.stop.set()
                concurrent.futures.wait([test])
    finally:
        harness.DestroyQSL(library)
        harness.DestroySUT(under_test)
    worker.result()
    test.result()
