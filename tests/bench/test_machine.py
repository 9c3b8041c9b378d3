"""What this machine can do at most."""

import sys

import pytest

from calipso_bench.machine import bandwidth, matmul, peaks


@pytest.fixture(autouse=True)
def small_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "SIZES", (64,))
    monkeypatch.setattr(matmul, "_SECONDS", 0.001)
    monkeypatch.setattr(matmul, "_PAUSE_S", 0.0)
    monkeypatch.setattr(bandwidth, "_BYTES", 1 << 20)


def test_the_peak_is_the_best_of_all_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    # Importing it takes seconds.
    monkeypatch.setitem(sys.modules, "torch", None)

    found = peaks(1)

    assert set(found["matmul_by_engine"]) >= {"numpy", "onnxruntime"}
    assert found["matmul_gflops"] == max(found["matmul_by_engine"].values()) > 0
    assert min(found["read_gb_s"], found["copy_gb_s"]) > 0


def test_an_engine_that_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)

    assert set(matmul.by_engine(1)) == {"numpy"}
