"""TensorRT for RTX compiles every kind of bundle with every front end: each graph that engines are built of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_samples import CLASSES, HEAD, shared_config
from precision_samples import LOOSE, OPSET

from calipso_export import export
from calipso_runtime.bundle import MANIFEST_FILE
from calipso_runtime.engines.families import capabilities_of
from calipso_runtime.engines.judge import Judge
from calipso_runtime.errors import UsageError
from calipso_runtime.graph_file import MODEL_FILE, TEXT_FILE
from calipso_runtime.head.file import refuse_engine
from calipso_runtime.manifest import read_manifest
from needs import needs_rtx

pytestmark = pytest.mark.slow
PRECISION = "fp16"
NO_HEAD = {"classes": (), **dict.fromkeys(HEAD)}
# By name: what is asked for, the graphs of the bundle, and whether `calipso build` makes engines of it.
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...], bool]] = {
    "zero-shot": ({}, (MODEL_FILE,), True),
    "CALIP": ({"shots": True, "outputs": ("logits", "tokens")}, (MODEL_FILE,), True),
    "trained CALIP": ({"shots": True, "calip_fs": True}, (MODEL_FILE,), True),
    "every output": ({"outputs": ("logits", "embedding", "probabilities", "tokens")}, (MODEL_FILE,), True),
    "fp16 at its edges": ({"io_dtype": "fp16"}, (MODEL_FILE,), True),
    "ResNet": ({"model": "resnet", "shots": True}, (MODEL_FILE,), True),
    "points": ({"input": "points", "points": 48, "templates": "depth-map", "shots": "clouds"}, (MODEL_FILE,), True),
    "pixels of one size": ({"pixels": True, "pixels_size": "40x50"}, (MODEL_FILE,), True),
    "image tower of embeddings": ({"head_mode": "embed", **NO_HEAD}, (MODEL_FILE, TEXT_FILE), True),
    "head as input": (
        {"head_mode": "inputs", "shots": True, "calip": False, "b2": None, "b3": None},
        (MODEL_FILE,),
        False,
    ),
    "any labels": ({"head_mode": "open", **NO_HEAD}, (MODEL_FILE,), False),
}


def write_clouds(folder: Path) -> Path:
    for row, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            np.save(folder / name / f"{number}.npy", np.random.default_rng([row, number]).standard_normal((60, 3)))
    return folder


@pytest.fixture(scope="module")
def make(
    tiny_vit: Path, tiny_resnet: Path, shots: Path, feature_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Export a kind of bundle."""
    examples = {True: shots, "clouds": write_clouds(tmp_path_factory.mktemp("clouds") / "shots")}

    def made(settings: dict[str, Any]) -> Path:
        values = dict(settings)
        values["model"] = str(tiny_resnet if values.get("model") == "resnet" else tiny_vit)
        if "shots" in values:
            values["shots"] = examples[values["shots"]]
        else:
            values |= {"calip": False, **dict.fromkeys(HEAD)}
        output = tmp_path_factory.mktemp("kind") / "out.calipso"
        common = {"outputs": ("logits", "embedding"), "precision": PRECISION, "gates": LOOSE, "opset": OPSET}
        export(shared_config(feature_cache=feature_cache, output=output, **{**common, **values}))
        return output

    return made


@needs_rtx
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_bundle_compiles(kind: str, make: Callable[..., Path], judge: Judge) -> None:
    settings, files, has_engines = KINDS[kind]

    path = make(settings)

    assert sorted(each.name for each in path.glob("*.onnx") if ".ort" not in each.name) == sorted(files)
    found = {name: judge.judge(path / name, capabilities_of(None, PRECISION)).refusals for name in files}
    assert found == dict.fromkeys(files, ())
    if has_engines:
        refuse_engine(path, read_manifest(path / MANIFEST_FILE))
    else:
        with pytest.raises(UsageError):
            refuse_engine(path, read_manifest(path / MANIFEST_FILE))


@needs_rtx
def test_pixels_of_any_size_are_refused_by_the_compiler_as_by_the_lint(make: Callable[..., Path], judge: Judge) -> None:
    path = make({"pixels": True})

    (refusal,) = judge.judge(path / MODEL_FILE, capabilities_of(None, PRECISION)).refusals

    assert refusal.by == "parser"
    with pytest.raises(UsageError, match="--pixels-size"):
        refuse_engine(path, read_manifest(path / MANIFEST_FILE))
