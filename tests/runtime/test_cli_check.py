"""`calipso check`: engines held to the bundle's own answers, without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from runtime_samples import MakeBundle, tiny_manifest, tiny_reference, weights

from calipso_runtime.bundle import MANIFEST_FILE, file_entry
from calipso_runtime.cli import calipso
from calipso_runtime.graph_file import MODEL_FILE
from calipso_runtime.manifest import read_manifest, write_manifest
from calipso_runtime.parity import Gates

ENGINES = ("ort", "openvino")


def check(*arguments: object) -> Result:
    return CliRunner().invoke(calipso, ["check", *map(str, arguments)])


@pytest.mark.parametrize("backend", ENGINES)
def test_a_sound_bundle_passes(checkable: Path, backend: str) -> None:
    pytest.importorskip({"ort": "onnxruntime", "openvino": "openvino"}[backend])

    result = check(checkable, "--backend", backend)

    assert result.exit_code == 0, result.output
    assert f"{backend} runs model.onnx on" in result.stdout
    assert result.stdout.rstrip().endswith("parity: passed")


def test_as_json_it_tells_every_batch_size_that_was_asked(checkable: Path) -> None:
    result = check(checkable, "--batch", "1,3", "--json")

    document = json.loads(result.stdout)
    assert (document["status"], list(document["by_batch"])) == ("passed", ["1", "3"])


@pytest.mark.parametrize("backend", ENGINES)
def test_a_weight_that_was_changed_behind_every_hash_fails(checkable: Path, tmp_path: Path, backend: str) -> None:
    pytest.importorskip({"ort": "onnxruntime", "openvino": "openvino"}[backend])
    folder = Path(shutil.copytree(checkable, tmp_path / "changed"))
    model, text = folder / MODEL_FILE, weights()[1]
    wrong = text.copy()
    wrong[0, 0] += 1
    model.write_bytes(model.read_bytes().replace(text.tobytes(), wrong.tobytes()))
    manifest = read_manifest(folder / MANIFEST_FILE)
    files = {**manifest.files, MODEL_FILE: file_entry(model)}
    write_manifest(folder / MANIFEST_FILE, tiny_manifest(files=files, parity="passed"))

    result = check(folder, "--backend", backend)

    assert result.exit_code == 1
    assert result.stdout.rstrip().endswith("parity: failed")
    assert f"changed on {backend} does not answer like eager PyTorch:\n  batch 1: relative" in result.stderr


def test_answers_of_another_model_fail_in_valid_json(make_bundle: MakeBundle) -> None:
    answers = tiny_reference().answers.outputs
    other = {**answers, "logits": np.full_like(answers["logits"], np.nan)}
    folder = make_bundle(reference=tiny_reference(answers=type(tiny_reference().answers)(outputs=other)), gates=Gates())

    result = check(folder, "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout, parse_constant=pytest.fail)["status"] == "failed"


def test_a_bundle_without_answers_is_told_from_a_wrong_one(tiny: Path) -> None:
    result = check(tiny)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "carries no answers of eager PyTorch" in result.stderr


@pytest.mark.parametrize("sizes", ["", "0", "1,two", "1;2"])
def test_batch_sizes_that_are_none_are_bad_usage(checkable: Path, sizes: str) -> None:
    assert check(checkable, "--batch", sizes).exit_code == 2


def test_it_needs_neither_torch_nor_onnx_nor_pillow(checkable: Path) -> None:
    code = f"""
import sys
for name in ("torch", "torchvision", "open_clip", "onnx", "PIL", "calipso_export"): sys.modules[name] = None
sys.argv = ["calipso", "check", {str(checkable)!r}]
from calipso_runtime.__main__ import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "parity: passed" in result.stdout
