"""Importing the runtime needs numpy alone, and is quick."""

import json
import statistics
import subprocess
import sys
import time

import pytest

FOREIGN = (
    *("torch", "torchvision", "open_clip", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"),
    *("PIL", "click", "rich", "tokenizers", "ftfy", "av"),
)
BUDGET_S = 0.100
RUNS = 7
# Parts of the runtime for who compares engines: no classifier needs them.
LATER = ("calipso_runtime.accuracy", "calipso_runtime.parity", "calipso_runtime.reference")


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_brings_nothing_but_numpy() -> None:
    loaded = json.loads(python("import json, sys, calipso_runtime; print(json.dumps(sorted(sys.modules)))"))

    assert "numpy" in loaded
    assert not {*FOREIGN, *LATER} & set(loaded)


def test_every_module_but_the_backends_and_the_command_imports_with_numpy_alone() -> None:
    code = f"""
import sys
for name in {FOREIGN!r}: sys.modules[name] = None
import calipso_runtime.preprocess, calipso_runtime.pictures, calipso_runtime.inputs, calipso_runtime.doctor
import calipso_runtime.bundle, calipso_runtime.classifier, calipso_runtime.backends, calipso_runtime.devices
import calipso_runtime.tokenizer, calipso_runtime.video
for name in {LATER!r}: __import__(name)
"""
    python(code)


def test_import_takes_under_100_ms_beyond_numpys_own() -> None:
    # The processor's time: what else the machine is doing does not count.
    code = """
import time
import numpy
start = time.process_time()
import calipso_runtime
print(time.process_time() - start)
"""
    assert statistics.median(float(python(code)) for _ in range(RUNS)) < BUDGET_S


def test_the_version_is_text_and_looked_up_only_when_asked_for() -> None:
    code = "import sys, calipso_runtime as c; a = 'importlib.metadata' in sys.modules; print(a, c.__version__)"

    early, version = python(code).split()

    assert early == "False"
    assert version[0].isdigit()


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import calipso_runtime

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = calipso_runtime.nonsense


def test_every_exported_name_is_there() -> None:
    import calipso_runtime

    assert all(hasattr(calipso_runtime, name) for name in calipso_runtime.__all__)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_click_or_rich_the_command_names_the_extra(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from calipso_runtime.__main__ import main; main()"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {missing} is not installed: pip install 'calipso[cli]'\n"


def test_without_onnxruntime_the_extra_is_named(tiny) -> None:
    code = f"""
import sys
for name in ("onnxruntime", "openvino"): sys.modules[name] = None
import calipso_runtime
try:
    calipso_runtime.load({str(tiny)!r})
except calipso_runtime.BackendUnavailableError as error:
    print(error)
"""
    assert "pip install 'calipso[ort]'" in python(code)


def test_the_engine_starts_in_time_with_no_torch(tiny) -> None:
    start = time.perf_counter()

    loaded = python(f"import sys, calipso_runtime as c; c.load({str(tiny)!r}); print('torch' in sys.modules)")

    assert loaded.strip() == "False"
    assert time.perf_counter() - start < 30
