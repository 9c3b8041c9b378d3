"""The check that no test leaves a process, on runs of pytest of their own."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="starts programs of POSIX")
HEADER = """
import multiprocessing, signal, subprocess, sys, time
from multiprocessing import shared_memory
import pytest

def sleep(seconds):
    return subprocess.Popen(["sleep", str(seconds)])

"""
GRACE = """
def pytest_sessionstart(session):
    session.config.pluginmanager.get_plugin("left-processes").grace_s = 0.5
"""


def outcome(folder: Path, tests: str) -> str:
    """What pytest prints about the tests, where processes get half a second to end by themselves."""
    (folder / "conftest.py").write_text(GRACE)
    (folder / "test_it.py").write_text(HEADER + textwrap.dedent(tests))
    options = ("-p", "left_processes", "-p", "no:cacheprovider", "-q")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    return result.stdout


def killed(text: str) -> list[str]:
    """The commands that the check says it killed; none of them still runs."""
    found = dict(re.findall(r"PID (\d+) \((.+?)\)", text))
    assert not any(psutil.pid_exists(int(pid)) for pid in found)
    return list(found.values())


def test_a_test_that_leaves_a_process_fails_and_the_process_is_ended(tmp_path: Path) -> None:
    text = outcome(
        tmp_path,
        """
        def test_leaves(): sleep(1234)
        def test_is_not_to_blame(): pass
        """,
    )

    assert "ERROR at teardown of test_leaves" in text
    assert "test_it.py::test_leaves left running processes, which were killed: PID " in text
    assert killed(text) == ["sleep 1234"]
    assert "2 passed, 1 error" in text


def test_processes_that_have_ended_are_no_failure(tmp_path: Path) -> None:
    text = outcome(
        tmp_path,
        """
        def test_reaps():
            process = sleep(1234)
            process.kill()
            process.wait()

        def test_kills_and_does_not_wait():
            process = sleep(1234)
            process.kill()
            process.returncode = 0  # Or Popen itself would warn.

        def test_leaves_what_ends_soon():
            process = sleep(0.2)
            process.returncode = 0

        @pytest.fixture
        def server():
            with sleep(1234) as process:
                yield
                process.kill()

        def test_has_a_fixture_that_ends_it(server): pass
        """,
    )

    assert "4 passed" in text
    assert "error" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere orphans are adopted by the system")
def test_an_orphan_is_found(tmp_path: Path) -> None:
    text = outcome(
        tmp_path,
        """
        def test_starts_what_leaves():
            subprocess.run(["sh", "-c", "sleep 1234 > /dev/null &"], check=True)
        """,
    )

    assert "ERROR at teardown of test_starts_what_leaves" in text
    assert killed(text) == ["sleep 1234"]


def test_children_of_what_is_left_are_ended_too(tmp_path: Path) -> None:
    text = outcome(
        tmp_path,
        """
        def test_leaves():
            process = subprocess.Popen(["sh", "-c", "sleep 1234 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
            print("child", process.stdout.readline())
            process.stdout.close()
            assert False
        """,
    )

    (child,) = set(re.findall(r"child (\d+)", text))
    assert len(killed(text)) == 1
    assert not psutil.pid_exists(int(child))


def test_a_fixture_of_a_module_keeps_its_process_until_it_is_torn_down(tmp_path: Path) -> None:
    text = outcome(
        tmp_path,
        """
        @pytest.fixture(scope="module")
        def good():
            with sleep(1234) as process:
                yield process
                process.kill()

        @pytest.fixture(scope="class")
        def forgetful():
            return sleep(5678)

        @pytest.mark.usefixtures("good", "forgetful")
        class TestBoth:
            def test_first(self): pass
            def test_last(self): pass

        def test_later(good): assert good.poll() is None
        """,
    )

    assert "ERROR at teardown of TestBoth.test_last" in text
    assert "started by the fixture forgetful" in text
    assert killed(text) == ["sleep 5678"]
    assert "3 passed, 1 error" in text


def test_helpers_of_multiprocessing_may_stay(tmp_path: Path) -> None:
    text = outcome(
        tmp_path,
        """
        def test_starts_the_resource_tracker():
            memory = shared_memory.SharedMemory(create=True, size=1)
            memory.close()
            memory.unlink()

        def test_starts_the_fork_server():
            process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(0,))
            process.start()
            process.join()
        """,
    )

    assert "2 passed" in text
    assert "error" not in text


def test_a_teardown_that_fails_hides_nothing(tmp_path: Path) -> None:
    text = outcome(
        tmp_path,
        """
        @pytest.fixture
        def broken():
            yield
            raise ValueError("the teardown's own error")

        def test_leaves(broken): sleep(1234)
        """,
    )

    assert "the teardown's own error" in text
    assert killed(text) == ["sleep 1234"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    text = outcome(
        tmp_path,
        """
        def test_is_interrupted():
            sleep(1234)
            signal.raise_signal(signal.SIGINT)
        """,
    )

    assert "KeyboardInterrupt" in text
    assert "The test run left running processes" in text
    assert killed(text) == ["sleep 1234"]
