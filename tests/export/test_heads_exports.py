"""Every few-shot head of the table as a bundle of its own choice: linted, verified again, and in fp16."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from export_samples import CLASSES, MakeConfig
from onnx import TensorProto
from PIL import Image
from precision_samples import LOOSE, OPSET

from calipso_export import export
from calipso_export.heads import FEW_SHOT, attribute
from calipso_export.lint import ERROR, declared, lint_file
from calipso_export.progress import silent
from calipso_export.reverify import reverify
from calipso_runtime.graph_file import MODEL_FILE

# Colours that a model of random weights tells apart, however its texts lie.
COLOURS = {"ant": (230, 20, 20), "bee": (20, 230, 20), "crab": (20, 20, 230)}
PHOTOS = 5


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos whose colour is their class."""
    folder = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for number in range(PHOTOS):
            pixels = rng.normal(COLOURS[name], 40, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about its own internals
@pytest.mark.parametrize("name", FEW_SHOT)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_head_is_chosen_on_photos_linted_and_stays_in_fp32(
    name: str, precision: str, make_config: MakeConfig, coloured: Path, tiny_vit: Path
) -> None:
    values = {"shots": coloured, "head": name, "calip": False, **dict.fromkeys(("alpha", "beta", "b2", "b3"))}
    gates = {} if precision == "fp32" else {"gates": LOOSE}
    config = make_config(**values, **gates, precision=precision, outputs=("logits", "embedding"), opset=OPSET)

    manifest, parity = export(config)
    again = reverify(config.output, data=coloured, checkpoint=None, model=str(tiny_vit), backend="ort", progress=silent)

    record = manifest.few_shot
    assert (record["name"], record["used"], parity.failures, again.failures) == (name, True, (), ())
    assert record["chosen"]["accuracy_with"] > record["chosen"]["accuracy_without"]
    found = lint_file(config.output / MODEL_FILE, targets=declared(OPSET)).findings
    assert [str(each) for each in found if each.severity == ERROR or attribute(name) in each.where] == []
    graph = onnx.load(config.output / MODEL_FILE).graph
    own = [each for each in graph.initializer if each.name.startswith(attribute(name) + ".")]
    assert own
    assert [each.name for each in own if each.data_type == TensorProto.FLOAT16] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about its own internals
@pytest.mark.parametrize("name", FEW_SHOT)
def test_a_head_is_fitted_on_photos_that_are_not_augmented(name: str, make_config: MakeConfig, coloured: Path) -> None:
    values = {"shots": coloured, "head": name, "calip": False, **dict.fromkeys(("alpha", "beta", "b2", "b3"))}

    manifest, parity = export(make_config(**values, epochs=0))

    assert (manifest.few_shot["name"], parity.failures) == (name, ())
