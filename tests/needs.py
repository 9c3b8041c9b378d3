"""What a test needs that a machine may lack: marks that skip it there, with what to install."""

import importlib.util
from collections.abc import Callable
from typing import TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., None])

# For `pytestmark` and `pytest.param(marks=...)`; the second form is a decorator.
NEEDS_RTX = [
    pytest.mark.rtx,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is missing: pip install '.[rtx]'"
    ),
]


def needs_rtx(test: Test) -> Test:
    """Mark a test that compiles with TensorRT for RTX."""
    for mark in NEEDS_RTX:
        test = mark(test)
    return test
