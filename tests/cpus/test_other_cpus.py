"""int8 answers alike on every CPU: what an older one adds up is what VNNI adds up, exact integers."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from emulators import Emulator
from integer_samples import CONVOLUTIONS, MATRICES, Product, as_sums, sums, write

from calipso_export import ExportConfig, export

if TYPE_CHECKING:
    from calipso_export.precision.lower import Lowered

ROOT = Path(__file__).parent.parent.parent
ANSWER = Path(__file__).parent / "answer_graphs.py"
PRODUCTS: Mapping[str, Product] = {**MATRICES, **CONVOLUTIONS}
# A sum of at most 256 products of eight bits is below 2^22, so three roundings of fp32 leave it well within a half.
EXACT = 0.5
CLASSES = 5

pytestmark = pytest.mark.slow


class Errors:
    """How far the sums of graphs are off on an emulated CPU, all of them asked in one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._wanted: dict[str, tuple[Product, Lowered, np.ndarray]] = {}

    def add(self, name: str, *, precision: str = "int8", portable: bool = False, full_range: bool = False) -> None:
        """Write a product's graph in a precision: the portable one, or ONNX Runtime's."""
        product = PRODUCTS[name]
        lowered = product.lowered(precision, full_range=full_range)
        graph = lowered.portable if portable else lowered.ort
        title = f"{name}, {precision}, {'portable' if portable else 'for ONNX Runtime'}"
        self._wanted[title] = product, lowered, write(product, graph, self._folder, title)

    def on(self, emulator: Emulator, engine: str) -> dict[str, float]:
        """By graph that is not exact: how far off its worst sum is, in integers."""
        emulator.run(ANSWER, self._folder, engine)
        found = {}
        for title, (product, lowered, integers) in self._wanted.items():
            answer = as_sums(product, lowered, np.load(self._folder / f"{title}.npy"))
            found[title] = float(np.abs(answer - sums(product, lowered, integers)).max())
        return {title: error for title, error in found.items() if error >= EXACT}


@pytest.fixture
def errors(tmp_path: Path) -> Errors:
    """Of graphs that are added to it."""
    return Errors(tmp_path)


@pytest.fixture
def every_graph(errors: Errors) -> Errors:
    """Of every product in both graphs of int8, and of every matrix with ranges of each batch."""
    for name in PRODUCTS:
        errors.add(name, portable=True)
        errors.add(name)
    for name in MATRICES:
        errors.add(name, precision="int8-dynamic")
    return errors


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in int8, exported on this CPU."""
    folder, model = tmp_path_factory.mktemp("trained"), ROOT / "models" / "shapes-vit"
    draw = [sys.executable, str(ROOT / "examples/shapes/draw.py"), "--out", str(folder / "task")]
    subprocess.run([*draw, "--shots", "2", "--held-out", "1"], check=True, capture_output=True)
    names = (folder / "task" / "classes.txt").read_text(encoding="utf-8").splitlines()
    shots = folder / "shots"
    for name in names[:CLASSES]:
        shutil.copytree(folder / "task" / "shots" / name, shots / name)
    config = ExportConfig(
        model=str(model / "shapes-vit.json"),
        checkpoint=model / "shapes-vit.safetensors",
        # The emulated CPU takes a second for an image.
        classes=tuple(names[:CLASSES]),
        templates="photo",
        shots=shots,
        precision="int8",
        output=folder / "trained.calipso",
    )
    export(config)
    return config.output


def test_the_emulated_cpu_overflows_with_weights_of_the_full_range(avx2: Emulator, errors: Errors) -> None:
    """Without this, the other tests would prove nothing."""
    errors.add("a matrix", full_range=True)

    (error,) = errors.on(avx2, "onnxruntime").values()

    assert error > 1000


def test_every_graph_is_exact_in_onnx_runtime_without_vnni(avx2: Emulator, every_graph: Errors) -> None:
    assert every_graph.on(avx2, "onnxruntime") == {}


def test_the_portable_graph_is_exact_in_openvino_without_vnni(avx2: Emulator, errors: Errors) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")
    for name in PRODUCTS:
        errors.add(name, portable=True)

    assert errors.on(avx2, "openvino") == {}


@pytest.mark.network
def test_every_graph_is_exact_in_onnx_runtime_on_arm(arm: Emulator, every_graph: Errors) -> None:
    assert every_graph.on(arm, "onnxruntime") == {}


def test_a_bundle_of_this_cpu_passes_its_check_on_one_without_vnni(avx2: Emulator, trained: Path) -> None:
    checked = avx2.python("-m", "calipso_runtime", "check", str(trained), "--backend", "ort")

    assert checked.returncode == 0, checked.stdout + checked.stderr
