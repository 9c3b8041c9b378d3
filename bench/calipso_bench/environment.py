"""What a measurement was taken on: enough to judge it, nothing that names a machine or a person."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from calipso_runtime.devices import cpu_count, cpu_name, cuda_driver, instruction_sets

_PACKAGES = (
    "calipso",
    "torch",
    "open_clip_torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "pillow",
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_MILLI = 1e-3
_HERE, _RESULTS = Path(__file__).resolve().parent, "benchmarks/results"


def environment() -> dict[str, Any]:
    """CPU, instruction sets, clocks, memory, versions, thread settings and GPU, as JSON types.

    Results that were recorded by earlier versions have no "instruction_sets".
    """
    return {
        "cpu": cpu_name(),
        "instruction_sets": list(instruction_sets()),
        "cores": cpu_count(),
        "clocks": clocks(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "threads": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "gpu": gpu(),
    }


def clocks() -> dict[str, Any] | None:
    """Of the CPU in MHz, and the governor; None where the system does not say."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    if frequency is None:
        return None
    return {
        "min_mhz": frequency.min or None,
        "max_mhz": frequency.max or None,
        "current_mhz": round(frequency.current, 1),
        "governor": _GOVERNOR.read_text(encoding="utf-8").strip() if _GOVERNOR.is_file() else None,
    }


def gpu() -> dict[str, Any] | None:
    """The first NVIDIA GPU through NVML: name, driver, power, temperature, clocks; None where there is none."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        return {
            "name": _asked(nvml, nvml.nvmlDeviceGetName, handle),
            "driver": _asked(nvml, nvml.nvmlSystemGetDriverVersion),
            **_load(nvml, handle),
            "clocks": {
                "sm_mhz": _asked(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
                "memory_mhz": _asked(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
                "max_sm_mhz": _asked(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            },
        }


def gpu_load() -> dict[str, Any] | None:
    """Power and temperature of the first GPU now, or None without one."""
    with _nvml() as nvml:
        return None if nvml is None else _load(nvml, nvml.nvmlDeviceGetHandleByIndex(0))


def commit(folder: Path = _HERE) -> str | None:
    """Of the checkout that a folder lies in, "-dirty" with changes; None where it is no checkout.

    Results are no changes: a benchmark writes them while it runs.
    """
    if "site-packages" in folder.parts:
        # A checkout around an installation is another project's.
        return None
    if (found := _git(folder, "rev-parse", "HEAD")) is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", f":(top,exclude){_RESULTS}")
    return f"{found}-dirty" if changed else found


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, or None where it is missing or refuses."""
    try:
        found = subprocess.run(  # noqa: S603 - our own words
            ["git", *arguments],  # noqa: S607 - whatever git there is
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _load(nvml: Any, handle: Any) -> dict[str, Any]:
    power_mw = _asked(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    return {
        "power_w": None if power_mw is None else power_mw * _MILLI,
        "temperature_c": _asked(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
    }


def _asked(nvml: Any, question: Any, *arguments: Any) -> Any:
    """An answer, or None where this GPU does not give it."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, started; or None where there is no driver, no GPU, or the package is missing."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    # NVML starts without a driver's devices on some systems, and then fails at the first of them.
    if not cuda_driver().devices:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
