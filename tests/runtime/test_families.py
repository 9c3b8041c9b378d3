"""Which compiler builds an engine, and for which GPUs."""

import importlib.util
import sys

import pytest
from gpu import Gpu

from calipso_runtime.engines.families import CAPABILITIES, capabilities_of, resolve, sm
from calipso_runtime.errors import BackendUnavailableError, UsageError


def names(text: str | None, precision: str) -> list[str]:
    return [sm(each) for each in capabilities_of(text, precision)]


def test_capabilities_are_read_once_each_and_the_oldest_first() -> None:
    assert names("SM120, sm86,sm86,sm89", "fp16") == ["sm86", "sm89", "sm120"]


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", ["sm80", "sm86", "sm89", "sm120", "sm121"]),
        ("bf16", ["sm80", "sm86", "sm89", "sm120", "sm121"]),
        ("int8-fp16", ["sm80", "sm86", "sm89", "sm120", "sm121"]),
        ("fp8", ["sm89", "sm120", "sm121"]),
    ],
)
def test_without_capabilities_those_are_taken_that_the_precision_runs_on(precision: str, expected: list[str]) -> None:
    assert names(None, precision) == expected


@pytest.mark.parametrize("name", ["sm87", "sm90", "sm100", "sm110", "current", "8.6", "", "sm86,,sm89"])
def test_a_capability_that_is_not_compiled_for_is_refused_with_those_that_are(name: str) -> None:
    expected = r"only for sm75, sm80, sm86, sm89, sm120, sm121\. Jetson \(sm87, sm110\) and Hopper \(sm90\) stay with"

    with pytest.raises(UsageError, match=expected):
        capabilities_of(name, "fp16")


@pytest.mark.parametrize(("text", "precision"), [("sm86", "fp8"), ("sm86,sm89", "fp8"), ("sm75", "bf16")])
def test_a_gpu_without_products_in_the_precision_is_refused_with_those_that_have_them(
    text: str, precision: str
) -> None:
    first = text.partition(",")[0]

    with pytest.raises(UsageError, match=rf"{first} cannot compute in {precision}.*Choose from sm8\d, .*sm121, or"):
        capabilities_of(text, precision)


def test_turing_is_compiled_for_where_it_is_asked_for() -> None:
    assert names("sm75", "fp16") == [sm(CAPABILITIES[0])]


@pytest.fixture
def no_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "rtx" in name else found(name))


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("sys") if "rtx" in name else found(name))


def test_auto_takes_tensorrt_where_it_works(gpu: Gpu, rtx: None) -> None:
    assert resolve("auto", ahead=False) == "tensorrt"


def test_auto_takes_tensorrt_for_rtx_where_there_is_no_tensorrt(
    gpu: Gpu, rtx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    assert resolve("auto", ahead=False) == "tensorrt-rtx"


def test_auto_takes_tensorrt_for_rtx_where_capabilities_are_given(gpu: Gpu) -> None:
    assert resolve("auto", ahead=True) == "tensorrt-rtx"


def test_with_neither_both_ways_to_get_one_are_named(no_rtx: None) -> None:
    with pytest.raises(BackendUnavailableError, match=r"needs a CUDA device: .* pip install 'calipso\[rtx\]'"):
        resolve("auto", ahead=False)


def test_capabilities_are_not_for_tensorrt() -> None:
    with pytest.raises(UsageError, match="TensorRT builds for the GPU of the machine that it runs on"):
        resolve("tensorrt", ahead=True)


def test_an_engine_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="engine 'nonsense' is unknown: expected auto, tensorrt, tensorrt-rtx"):
        resolve("nonsense", ahead=False)
