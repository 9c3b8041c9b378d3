"""What every run of the tests begins with: signals that reach the tests' processes, and a header that names the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from calipso_runtime import devices

IN_A_CHILD = """
import subprocess, sys

ASK = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"

def test_children_raise_keyboard_interrupt():
    assert subprocess.run([sys.executable, "-c", ASK], capture_output=True, check=True).stdout == b"True\\n"
"""


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_signals_reach_the_processes_of_tests_that_run_in_the_background(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(IN_A_CHILD)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "test_it.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}

    # A shell that starts a job with & ignores SIGINT for it like this.
    result = subprocess.run(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"CPU: {devices.cpu_name()}, " in result.stdout
