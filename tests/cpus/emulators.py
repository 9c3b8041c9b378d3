"""Python under qemu: this one on an older x86 CPU, and one of Debian's on ARM. Nothing of ARM's is installed."""

import dataclasses
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

# Haswell is the first Intel CPU with AVX2. qemu emulates AVX2 since 7.2, and neither AVX-512 nor VNNI.
_X86_CPU = "Haswell"
# From 1.28 on, onnxruntime's aarch64 wheels crash when they are imported under qemu 7.2.
_ARM_WHEELS = ("onnxruntime==1.24.4", "numpy==2.4.6", "flatbuffers", "protobuf", "packaging")
_ARM_PYTHON = "3.11"
_ARM_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_SECONDS = 600


class UnavailableError(Exception):
    """A CPU cannot be emulated here; the text says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emulator:
    """Runs Python scripts on another CPU.

    Attributes:
        command: what stands before the script.
    """

    command: tuple[str, ...]

    def run(self, script: Path, *arguments: object) -> str:
        """Run a script to its end, and return what it printed."""
        command = [*self.command, str(script), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        assert result.returncode == 0, f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr}"
        return result.stdout

    def python(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the interpreter with these arguments."""
        return subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
        )


def x86_without_vnni() -> Emulator:
    """This Python on an x86 CPU with AVX2 alone.

    Raises:
        UnavailableError: this is no x86 machine, or it lacks qemu.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        message = f"the emulated CPU is of x86-64, and this Python is for {platform.machine()}"
        raise UnavailableError(message)
    return Emulator(command=(_qemu("qemu-x86_64"), "-cpu", _X86_CPU, sys.executable))


def aarch64(cpu: str, folder: Path) -> Emulator:
    """A Python of Debian's on an ARM CPU, with numpy and onnxruntime.

    Args:
        cpu: qemu's name of it.
        folder: where Python and its packages are unpacked, once for all runs.

    Raises:
        UnavailableError: this machine lacks qemu, or apt and pip could not fetch the packages.
    """
    qemu = _qemu("qemu-aarch64")
    root, site = folder / "root", folder / "site"
    if not (folder / "complete").is_file():
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(site, ignore_errors=True)
        _unpack_debian(folder / "apt", root)
        _unpack_wheels(folder / "wheels", site)
        (folder / "complete").touch()
    paths = ("-E", f"PYTHONPATH={site}", "-E", f"PYTHONHOME={root / 'usr'}")
    return Emulator(command=(qemu, "-cpu", cpu, "-L", str(root), *paths, str(root / f"usr/bin/python{_ARM_PYTHON}")))


def _qemu(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed: apt-get install qemu-user"
        raise UnavailableError(message)
    return path


def _unpack_debian(work: Path, root: Path) -> None:
    """Fetch Python for ARM and what it needs, with a state of apt's own, and unpack it."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True, exist_ok=True)
    (work / "state/status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": work / "state",
        "Dir::State::status": work / "state/status",
        "Dir::Cache": work / "cache",
    }
    apt = ["apt-get", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    _fetch([*apt, "update"])
    python = (f"python{_ARM_PYTHON}-minimal", f"libpython{_ARM_PYTHON}-stdlib", "libstdc++6")
    _fetch([*apt, "install", "--yes", "--no-install-recommends", "--download-only", *python])
    for package in sorted((work / "cache/archives").glob("*.deb")):
        _fetch(["dpkg-deb", "--extract", str(package), str(root)])


def _unpack_wheels(work: Path, site: Path) -> None:
    tags = [part for name in _ARM_PLATFORMS for part in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *tags]
    _fetch([*pip, "--python-version", _ARM_PYTHON, "--dest", str(work), *_ARM_WHEELS])
    for wheel in sorted(work.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def _fetch(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except FileNotFoundError as error:
        message = f"Python for ARM comes from Debian's packages, and {command[0]} is not on this machine"
        raise UnavailableError(message) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        message = f"{command[0]} could not fetch Python for ARM: {reason}"
        raise UnavailableError(message) from error
