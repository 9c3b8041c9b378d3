"""What this machine can do at most: fp32 matrix products by every engine that is here, and memory bandwidth."""

from typing import Any

from calipso_bench.machine import bandwidth, matmul


def peaks(threads: int) -> dict[str, Any]:
    """Measure the roof under which everything else is measured, in some seconds.

    Args:
        threads: as many as the contenders will have.

    Returns:
        `matmul_gflops`, the best of `matmul_by_engine`; `read_gb_s` and `copy_gb_s`.
    """
    by_engine = matmul.by_engine(threads)
    return {
        "matmul_gflops": max(by_engine.values()),
        "matmul_by_engine": by_engine,
        "read_gb_s": bandwidth.read_gb_s(threads),
        "copy_gb_s": bandwidth.copy_gb_s(threads),
    }
