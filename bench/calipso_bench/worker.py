"""One contender in a process of its own, for cold start and memory: `python -m calipso_bench.worker JOB.json`.

It imports, loads, answers one picture, goes on answering it, and writes one line of JSON. The clock
starts with the process: the parent passes what `time.perf_counter` said when it started it, which
counts from the same moment in every process of a machine.
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calipso_bench.contenders import ContenderUnavailable, first_line, import_contender
from calipso_runtime.errors import CalipsoError
from calipso_runtime.manifest import Preprocess

if TYPE_CHECKING:
    from calipso_bench.contenders.eager_module import EagerModel

ANSWERED = "answered"
_TOP = 5
_STEADY_CALLS = 10
_STATUS = Path("/proc/self/status")
_MS = 1e3


class WorkerSubject:
    """What a contender needs of a subject, from files that the parent made."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.bundle = Path(job["bundle"])
        self.file_bytes = int(job["file_bytes"])
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in job["preprocess"].items()
        }
        self.preprocess = Preprocess(**settings)
        self._plain, self._eager = job["plain"], job["eager"]

    def eager(self) -> "EagerModel":
        """The eager model, as open_clip loads it from its checkpoint."""
        if self._eager is None:
            message = "the eager model could not be made"
            raise ContenderUnavailable(message)
        from calipso_bench.contenders.eager_module import load

        return load(Path(self._eager))

    def plain_onnx(self) -> Path:
        """The naive export."""
        if self._plain is None:
            message = "the plain export could not be made"
            raise ContenderUnavailable(message)
        return Path(self._plain)


def main() -> int:
    """Measure the contender of the job, and write what was measured."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    started = float(sys.argv[2])
    try:
        print(json.dumps(measure(job, started)), flush=True)  # noqa: T201 - the answer to the parent
    except ContenderUnavailable as error:
        print(json.dumps({"unavailable": str(error)}), flush=True)  # noqa: T201 - the answer to the parent
    except RuntimeError as error:
        # What engines raise.
        print(json.dumps({"unavailable": first_line(error)}), flush=True)  # noqa: T201 - the answer to the parent
    except CalipsoError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent tells it
        return error.exit_code
    return 0


def measure(job: dict[str, Any], started: float) -> dict[str, Any]:
    """Seconds since the process started until everything was imported and until the first answer, and the rest.

    Raises:
        ContenderUnavailable: the contender cannot run here.
    """
    constructor = import_contender(job["contender"])
    imported = time.perf_counter()
    contender = constructor(WorkerSubject(job), name=job["contender"], threads=job["threads"])
    loaded = time.perf_counter()
    picture = Path(job["picture"]).read_bytes()
    answer = contender.answer([picture], _TOP)
    answered = time.perf_counter()
    print(ANSWERED, flush=True)  # noqa: T201 - the parent's own clock stops here
    steady_ms = []
    for _ in range(_STEADY_CALLS):
        before = time.perf_counter()
        contender.answer([picture], _TOP)
        steady_ms.append((time.perf_counter() - before) * _MS)
    sample = {
        "import_s": imported - started,
        "load_s": loaded - imported,
        "first_answer_s": answered - started,
        "steady_ms": statistics.median(steady_ms),
        "peak_rss_bytes": peak_rss_bytes(),
        "weights_bytes": contender.weights_bytes,
        "answer": answer,
    }
    contender.close()
    return sample


def peak_rss_bytes() -> int | None:
    """The largest resident set of this process so far, file pages included; None where nobody tells."""
    if _STATUS.is_file():
        # Not getrusage's: that is handed down from the process that started this one.
        return status_bytes(_STATUS, "VmHWM")
    if sys.platform == "win32":
        return None
    import resource

    # In bytes on macOS, in KiB on other systems.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def status_bytes(status: Path, name: str) -> int | None:
    """A size in the status that Linux tells of a process; None where it is not told, or the process is gone."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    sys.exit(main())
