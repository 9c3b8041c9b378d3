"""Reads what LoadGen writes: `mlperf_log_summary.txt` and `mlperf_log_accuracy.json`."""

import array
import dataclasses
import json
import re
from pathlib import Path

from calipso_bench.loadgen.system import ANSWER_TYPE
from calipso_runtime.errors import BackendError

SUMMARY_FILE = "mlperf_log_summary.txt"
ACCURACY_FILE = "mlperf_log_accuracy.json"
_SETTINGS_TITLE = "Test Parameters Used"
_VALUE = re.compile(r"^(?P<name>[^:]+?)\s*:\s*(?P<value>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)$")
_VERDICT = re.compile(r"^Result is\s*:\s*(\w+)", re.MULTILINE)
# Below the title, what LoadGen advises; its early-stopping notes follow in the same form.
_ADVICE = re.compile(r"^ \* (.+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What LoadGen says of one run.

    Attributes:
        valid: whether its constraints were met.
        result: every number that it reports, by a name made of its own words and units.
        settings: the parameters that it says it used.
        recommendations: its remarks, where the run is not valid.
    """

    valid: bool
    result: dict[str, float]
    settings: dict[str, float]
    recommendations: tuple[str, ...]


def read_summary(folder: Path) -> Summary:
    """Parse the summary of a performance run.

    Raises:
        BackendError: LoadGen left none, or none that says VALID or INVALID.
    """
    path = folder / SUMMARY_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    verdict = _VERDICT.search(text)
    if verdict is None:
        message = f"{path} holds no result of LoadGen: see mlperf_log_detail.txt beside it"
        raise BackendError(message)
    measured, _, used = text.partition(_SETTINGS_TITLE)
    valid = verdict.group(1) == "VALID"
    remarks = () if valid else tuple(_ADVICE.findall(measured))
    return Summary(valid=valid, result=_numbers(measured), settings=_numbers(used), recommendations=remarks)


def read_answers(folder: Path) -> dict[int, int]:
    """The best class of each sample, by its index, out of an accuracy run's log.

    Raises:
        BackendError: the log is not there, or an answer in it is empty.
    """
    path = folder / ACCURACY_FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {int(entry["qsl_idx"]): _best(entry["data"]) for entry in entries}
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"{path} holds no answers that can be read: {error!r}"
        raise BackendError(message) from error


def _best(data: str) -> int:
    answer = array.array(ANSWER_TYPE)
    answer.frombytes(bytes.fromhex(data))
    return answer[0]


def _numbers(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        match = _VALUE.match(line.strip())
        if match is not None:
            value = float(match["value"])
            found[_name(match["name"])] = int(value) if value.is_integer() else value
    return found


def _name(words: str) -> str:
    """A key of it: "99.00 percentile latency (ns)" is "99_percentile_latency_ns"."""
    plain = re.sub(r"(\d+)\.0+(?=\D)", r"\1", words.strip().lower()).replace("w/o ", "without ").replace("w/ ", "with ")
    return re.sub(r"[^a-z0-9.]+", "_", plain).strip("_")
