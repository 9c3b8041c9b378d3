"""Every few-shot head of the table as a bundle of its own choice: linted, verified again, and in fp16."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from export_samples import CLASSES, MakeConfig, shared_config
from onnx import TensorProto
from PIL import Image
from precision_samples import LOOSE, OPSET

from calipso_export import export
from calipso_export.heads import FEW_SHOT, attribute
from calipso_export.lint import ERROR, declared, lint_file
from calipso_export.progress import silent
from calipso_export.reverify import reverify
from calipso_runtime.bundle import MANIFEST_FILE
from calipso_runtime.engines.families import capabilities_of
from calipso_runtime.engines.judge import Judge
from calipso_runtime.graph_file import MODEL_FILE
from calipso_runtime.manifest import read_manifest
from needs import needs_rtx

# Colours that a model of random weights tells apart, however its texts lie.
COLOURS = {"ant": (230, 20, 20), "bee": (20, 230, 20), "crab": (20, 20, 230)}
PHOTOS = 5
# So that they are searched.
UNSET = dict.fromkeys(("alpha", "beta", "b2", "b3"))


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


@pytest.fixture(
    scope="module",
    params=[(name, precision) for name in FEW_SHOT for precision in ("fp32", "fp16")],
    ids=" in ".join,
)
def exported(
    request: pytest.FixtureRequest, tiny_vit: Path, coloured: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The name of a head, and a bundle with it in a precision, whose weights were chosen on the photos."""
    name, precision = request.param
    config = shared_config(
        model=str(tiny_vit),
        feature_cache=tmp_path_factory.mktemp("features"),
        output=tmp_path_factory.mktemp("head") / "out.calipso",
        shots=coloured,
        head=name,
        calip=False,
        precision=precision,
        outputs=("logits", "embedding"),
        opset=OPSET,
        gates={} if precision == "fp32" else LOOSE,
        **UNSET,
    )
    _, parity = export(config)
    assert parity.failures == ()
    return name, config.output


@pytest.mark.slow
def test_a_head_is_chosen_on_photos_and_verified_again(
    exported: tuple[str, Path], coloured: Path, tiny_vit: Path
) -> None:
    name, path = exported

    again = reverify(path, data=coloured, checkpoint=None, model=str(tiny_vit), backend="ort", progress=silent)

    record = read_manifest(path / MANIFEST_FILE).few_shot
    assert (record["name"], record["used"], again.failures) == (name, True, ())
    assert record["chosen"]["accuracy_with"] > record["chosen"]["accuracy_without"]


@pytest.mark.slow
def test_a_head_is_linted_and_stays_in_fp32(exported: tuple[str, Path]) -> None:
    name, path = exported

    found = lint_file(path / MODEL_FILE, targets=declared(OPSET)).findings

    assert [str(each) for each in found if each.severity == ERROR or attribute(name) in each.where] == []
    graph = onnx.load(path / MODEL_FILE).graph
    own = [each for each in graph.initializer if each.name.startswith(attribute(name) + ".")]
    assert own
    assert [each.name for each in own if each.data_type == TensorProto.FLOAT16] == []


@pytest.mark.slow
@needs_rtx
def test_a_head_compiles_with_tensorrt_for_rtx(exported: tuple[str, Path], judge: Judge) -> None:
    name, path = exported

    assert {name: judge.judge(path / MODEL_FILE, capabilities_of(None, "fp16")).refusals} == {name: ()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW_SHOT)
def test_a_head_is_fitted_on_photos_that_are_not_augmented(name: str, make_config: MakeConfig, coloured: Path) -> None:
    manifest, parity = export(make_config(shots=coloured, head=name, calip=False, epochs=0, **UNSET))

    assert (manifest.few_shot["name"], parity.failures) == (name, ())
