"""What this machine computes with, asked without importing any engine."""

import contextlib
import ctypes
import dataclasses
import functools
import os
import platform
import re
import sys
from pathlib import Path

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_BYTES = 256
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_DRIVER_RELEASE = re.compile(r"\b\d{3,}\.\d+(\.\d+)?\b")
_CPU_INFO = Path("/proc/cpuinfo")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
# The instruction sets that engines choose their kernels by, as Linux names them: x86-64's, then AArch64's.
_INSTRUCTION_SETS = (
    *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl"),
    *("avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CudaDriver:
    """NVIDIA's driver, as libcuda itself answers.

    Attributes:
        version: the newest CUDA that the driver speaks, "12.8", or None.
        devices: name of every GPU.
        problem: why there is nothing to compute on, or None.
    """

    version: str | None = None
    devices: tuple[str, ...] = ()
    problem: str | None = None


@functools.lru_cache(maxsize=1)
def cuda_driver() -> CudaDriver:
    """Ask libcuda for its devices; no context is made, so no GPU memory is taken.

    TensorRT and onnxruntime's CUDA provider crash or print where the driver is missing: this is
    asked before either of them is.
    """
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return CudaDriver(problem=f"no NVIDIA driver ({DRIVER_LIBRARY} is not on this machine)")
    if (code := library.cuInit(0)) != 0:
        return CudaDriver(problem=f"NVIDIA's driver does not start (cuInit answers {code})")
    raw, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(raw))
    library.cuDeviceGetCount(ctypes.byref(count))
    # 12080 means 12.8: CUDA driver API, cuDriverGetVersion.
    version = f"{raw.value // 1000}.{raw.value % 1000 // 10}"
    names = tuple(_device_name(library, ordinal) for ordinal in range(count.value))
    return CudaDriver(version=version, devices=names, problem=None if names else "the driver sees no GPU")


def driver_release() -> str:
    """Return the driver's own version, "580.65.06"; where the system does not say, the newest CUDA that it speaks."""
    try:
        found = _DRIVER_RELEASE.search(_DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return found.group() if found else f"CUDA {cuda_driver().version or 'unknown'}"


def _device_name(library: ctypes.CDLL, ordinal: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    library.cuDeviceGet(ctypes.byref(device), ordinal)
    library.cuDeviceGetName(name, _NAME_BYTES, device)
    return name.value.decode(errors="replace")


def cpu_name() -> str:
    """Of the CPU, as the system calls it."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> str:
    """What instructions the CPU has, as the system lists them; empty where it does not."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return value.strip()
    return ""


def instruction_sets() -> tuple[str, ...]:
    """Return the CPU's instruction sets for vectors and matrices, as Linux names them; empty where none are listed.

    Engines choose their kernels by them, so speed and the last digits of answers depend on them.
    """
    found = set(cpu_flags().split())
    return tuple(name for name in _INSTRUCTION_SETS if name in found)


def has_x86_vectors() -> bool:
    """Whether this is an x86-64 CPU, whose blocked convolutions ONNX Runtime is tuned for."""
    return platform.machine().lower() in ("x86_64", "amd64")


def has_vnni() -> bool:
    """Whether an x86 CPU multiplies and adds eight-bit numbers in 32 bits (AVX512-VNNI or AVX-VNNI)."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu_flags().split())


def adds_pairs_in_16_bits() -> bool:
    """Whether eight-bit products may saturate: on an x86 CPU without VNNI, or where its flags are not known."""
    return has_x86_vectors() and not has_vnni()


def cpu_quota() -> int | None:
    """CPUs' worth of time that a container may use, rounded up; None without a limit (cgroup v2, `cpu.max`)."""
    try:
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None


def cpu_count() -> int:
    """Logical CPUs that this process may use: fewer than the machine has, in a container or under taskset."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory, or None where the system does not say."""
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def largest_processes(count: int = 5) -> list[str]:
    """The processes that hold most memory, as "name (pid 12): 340 MiB", largest first; none where /proc is not there.

    On a Jetson host and GPU share one memory: what to close is the first question where it does not suffice.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        # One may have ended meanwhile; the system's own threads have no VmRSS.
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = (folder / "status").read_text(encoding="utf-8", errors="replace").splitlines()
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            held_kib = int(status["VmRSS"].split()[0])
            found.append((held_kib, f"{status['Name'].strip()} (pid {folder.name}): {held_kib >> 10} MiB"))
    return [text for _, text in sorted(found, reverse=True)[:count]]
