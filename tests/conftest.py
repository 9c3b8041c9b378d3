"""No test touches the user's own cache of encoded photos, and no test leaves a process; the header names the CPU."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calipso_runtime import devices

# Tests are imported one by one, without a package: this is how they find their helpers.
sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ("left_processes",)


def pytest_configure() -> None:
    """Let signals reach the processes that tests start.

    A shell starts a job in the background (`make test &`) with SIGINT ignored, and every child inherits that: Python
    then raises no KeyboardInterrupt. A signal with a handler starts at its default in a child.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_report_header() -> str:
    """Name the CPU and its instruction sets: engines choose their kernels, and thereby the last digits, by them."""
    return f"CPU: {devices.cpu_name()}, {', '.join(devices.instruction_sets()) or 'instruction sets unknown'}"


@pytest.fixture(scope="session", autouse=True)
def own_feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point the exporter's default cache folder at a temporary one, in this process and in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIPSO_CACHE", str(tmp_path_factory.mktemp("calipso-cache")))
        yield
