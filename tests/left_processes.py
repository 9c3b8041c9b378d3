"""A pytest plugin that fails a test which leaves a process running, and ends that process."""

import contextlib
import ctypes
import os
import shlex
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

# Some processes take a moment to end. Only a test that leaves one waits for this.
_GRACE_S = 10.0
# The same at the end of a run, where Ctrl-C may have interrupted processes together with it.
_LAST_GRACE_S = 2.0
_KILL_S = 10.0
_PAUSE_S = 0.02
_LONGEST_COMMAND = 300
_TASKS = Path("/proc/self/task")
_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()
# Source: linux/prctl.h.
_PR_SET_CHILD_SUBREAPER = 36


def pytest_configure(config: pytest.Config) -> None:
    """Adopt orphans and watch every test of this process; with pytest-xdist, each worker watches its own."""
    adopt_orphans()
    config.pluginmanager.register(LeftProcesses(), "left-processes")


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends; otherwise the system adopts it. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Return the PIDs of this process's direct children, those that have ended but were not waited for included."""
    if not _LISTS_CHILDREN:
        return {child.pid for child in psutil.Process().children()}
    try:
        # Nearly always there are none, and this single call says so. It reaps nothing.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    found: set[int] = set()
    for task in _TASKS.iterdir():
        # The thread may have ended meanwhile; its children then belong to another one.
        with contextlib.suppress(OSError):
            found.update(map(int, (task / "children").read_text(encoding="ascii").split()))
    return found


def helpers() -> set[int]:
    """Return the PIDs of helpers that multiprocessing starts once, keeps for later, and ends with this process."""
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    return {getattr(tracker, "_pid", None) or 0, getattr(server, "_forkserver_pid", None) or 0} - {0}


class LeftProcesses:
    """Checks after each test that only these children run: older ones, helpers, and those of fixtures still in use.

    A fixture of a wider scope may keep the processes that it started in its setup until it is torn down.

    Args:
        grace_s: seconds that processes get to end by themselves.
    """

    def __init__(self, grace_s: float = _GRACE_S) -> None:
        self.grace_s = grace_s
        self._older: set[int] = set()
        self._kept: dict[int, pytest.FixtureDef[Any]] = {}
        # Processes whose fixture has been torn down, with the fixture's name.
        self._overdue: dict[int, str] = {}

    def pytest_collection_finish(self) -> None:
        """Remember what runs before the first test."""
        self._older = children()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Let a fixture of a wider scope keep what it starts."""
        if fixturedef.scope == "function":
            return (yield)
        before = children()
        result = yield
        for pid in children() - before:
            self._kept.setdefault(pid, fixturedef)
        return result

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Expect that what a fixture kept has ended with it."""
        for pid in [pid for pid, owner in self._kept.items() if owner is fixturedef]:
            del self._kept[pid]
            self._overdue[pid] = fixturedef.argname

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fail a test that left processes, after its fixtures had the chance to end them."""
        try:
            result = yield
        except BaseException:
            if left := self._end_left():
                item.add_report_section("teardown", "left processes", left)
            raise
        if left := self._end_left():
            pytest.fail(f"{item.nodeid} left {left}", pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """End what a run would leave that was interrupted, or one whose worker of pytest-xdist crashed."""
        result = yield
        self.grace_s = min(self.grace_s, _LAST_GRACE_S)
        left = self._end_left()
        terminal = session.config.pluginmanager.get_plugin("terminalreporter")
        if left and terminal:
            terminal.write_line(f"The test run left {left}")
        return result

    def _end_left(self) -> str:
        """Kill every process that is left and return a description of them, or an empty string."""
        deadline = time.monotonic() + self.grace_s
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        if not left:
            return ""
        told = ", ".join(map(self._described, left))
        deadline = time.monotonic() + _KILL_S
        while left and time.monotonic() < deadline:
            _kill(left)
            time.sleep(_PAUSE_S)
            # Orphans of those that were killed appear here.
            left = self._left()
        return f"running processes, which were killed: {told}"

    def _left(self) -> list[psutil.Process]:
        """Return the children that run and should not, and reap those that have ended."""
        now = children()
        # A process that has ended is forgotten, as the system may give its PID to another one.
        self._older &= now
        self._kept = {pid: fixture for pid, fixture in self._kept.items() if pid in now}
        self._overdue = {pid: fixture for pid, fixture in self._overdue.items() if pid in now}
        found = []
        for pid in sorted(now - self._older - self._kept.keys() - helpers()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
                    continue
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        return found

    def _described(self, process: psutil.Process) -> str:
        try:
            command = shlex.join(process.cmdline()) or process.name()
        except psutil.Error:
            command = "its command line cannot be read"
        fixture = self._overdue.get(process.pid)
        whose = f", started by the fixture {fixture}" if fixture else ""
        return f"PID {process.pid} ({command[:_LONGEST_COMMAND]}){whose}"


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for each in (*process.children(recursive=True), process):
                with contextlib.suppress(psutil.Error):
                    each.kill()
