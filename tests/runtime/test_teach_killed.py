"""kill -9 at any moment loses nothing that `save` acknowledged, and leaves a bundle that loads and checks."""

import json
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from runtime_samples import tiny_reference
from teaching_samples import make_teachable

from calipso_runtime import load
from calipso_runtime.bundle import open_bundle
from calipso_runtime.errors import CalipsoWarning
from calipso_runtime.head.check import verify_head
from child_process import child

TEACHER = Path(__file__).with_name("killed_teacher.py")
KILLS = 200
# A change and its `save` take some milliseconds: kills fall before, within and after several of them.
LONGEST_S = 0.25


def killed_after(bundle: Path, seed: int, seconds: float) -> list[dict[str, list[str]]]:
    """Let a process teach for so long after it is ready; what it had said by then."""
    command = [sys.executable, str(TEACHER), str(bundle), str(seed)]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        assert ready == "ready\n", process.stderr.read()
        time.sleep(seconds)
        process.kill()
        said = process.stdout.read().splitlines(keepends=True)
        assert process.stderr.read() == ""
    return [json.loads(line) for line in said if line.endswith("\n")]


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    bundle = make_teachable(tmp_path / "teachable", reference=tiny_reference())
    chance = random.Random(0)  # noqa: S311
    labels: list[str] = list(open_bundle(bundle).manifest.labels)  # type: ignore[union-attr]
    acknowledged = 0
    for number in range(KILLS):
        said = killed_after(bundle, number, chance.uniform(0, LONGEST_S))
        saved = [each["saved"] for each in said if "saved" in each]
        acknowledged += len(saved)
        labels = saved[-1] if saved else labels
        # What was on its way may be there as well: it was written, and nobody was told.
        allowed = [labels, said[-1]["saving"]] if said and "saving" in said[-1] else [labels]

        with warnings.catch_warnings():
            # A record that was cut.
            warnings.simplefilter("ignore", CalipsoWarning)
            with load(bundle, backend="ort", threads=1) as classifier:
                found = list(classifier.labels)
                answers = classifier.logits(np.zeros((16, 16, 3), np.uint8))

        assert found in allowed
        assert answers.shape == (len(found),)
        assert np.isfinite(answers).all()
        labels = found

    with load(bundle, backend="ort", threads=1) as classifier:
        teacher = classifier._head._teacher
        assert teacher is not None
        parity = verify_head(classifier._head.now.engine, teacher.head, open_bundle(bundle))  # type: ignore[arg-type]
    assert not parity.failures
    assert acknowledged > KILLS
