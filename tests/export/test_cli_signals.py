"""A real `calipso export` that is interrupted, or runs out of disk, leaves nothing but its exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from export_samples import HEAD, below

from child_process import child

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")
# Files of the graph are larger than this, those of the store of photos are not.
LIMIT_BYTES = 300_000
LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT_BYTES}, {LIMIT_BYTES}))
from calipso_runtime.__main__ import main
main()
"""


@pytest.fixture
def arguments(tiny_vit: Path, shots: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "result").mkdir()
    values = {
        "model": tiny_vit,
        "random-init": 0,
        "classes": "ant,bee,crab",
        "templates": "photo",
        "shots": shots,
        "epochs": 1,
        "output": tmp_path / "result" / "out.calipso",
        **HEAD,
    }
    return ["export", *(str(part) for name, value in values.items() for part in (f"--{name}", value))]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_exits_130_and_leaves_nothing(arguments: list[str], tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "calipso_runtime", *arguments]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for _ in range(3000):
            if process.poll() is not None or below(tmp_path / "result"):
                break
            try:
                process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
        working = below(tmp_path / "result")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)

    assert len(working) == 1
    assert (process.returncode, out, err) == (130, b"", b"")
    assert below(tmp_path / "result") == set()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(arguments: list[str], tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, check=False, text=True)

    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'result' / 'out.calipso'} cannot be written: File too large (")
    assert below(tmp_path / "result") == set()
