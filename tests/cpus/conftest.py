"""Other CPUs than this one, emulated by qemu in user mode."""

import sys
from pathlib import Path

import pytest

# Tests are imported one by one, without a package: this is how they find their samples.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "export")]

from emulators import Emulator, UnavailableError, aarch64, x86_without_vnni  # noqa: E402


@pytest.fixture(scope="session")
def avx2() -> Emulator:
    """An x86 CPU with AVX2, and with neither AVX-512 nor VNNI."""
    try:
        return x86_without_vnni()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["cortex-a72", "neoverse-n1"])
def arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    """An ARM CPU without, and one with the dot product of eight-bit numbers."""
    kept = getattr(request.config, "cache", None)
    folder = kept.mkdir("aarch64") if kept else tmp_path_factory.mktemp("aarch64")
    try:
        return aarch64(str(request.param), folder)
    except UnavailableError as error:
        pytest.skip(str(error))
