"""A planted overflow is found and pinned by an export, and nothing else; without time nothing is written."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from export_samples import MakeConfig, below
from PIL import Image, ImageDraw
from precision_samples import LOOSE, OPSET
from safetensors.torch import load_file, save_file

from calipso_export import ExportConfig, export
from calipso_export.models import LoadedModel
from calipso_export.steps import repair
from calipso_runtime.bundle import PARITY_FILE, REPORT_FILE
from calipso_runtime.errors import ParityError
from calipso_runtime.parity import Parity, compare

MODEL = Path(__file__).resolve().parents[2] / "models" / "shapes-vit"
FACTOR = 1e5
CLASSES = ("red circle", "blue square", "green triangle")
GATES = {**LOOSE, "max_relative_logit_error": 0.05}
TINY_PLANTED = "tower.visual.transformer.resblocks.1.mlp"
PLANTED = "tower.visual.transformer.resblocks.3.mlp"
TINY_BLOCK, TINY_WIDTH = "tower.visual.transformer.resblocks.1", 64


def planted(weights: Mapping[str, torch.Tensor], layer: str, path: Path) -> Path:
    """A checkpoint of which a block's hidden numbers are a hundred thousand times as large."""
    changed = {name: weight.float() for name, weight in weights.items()}
    for name, factor in (("c_fc.weight", FACTOR), ("c_fc.bias", FACTOR), ("c_proj.weight", 1 / FACTOR)):
        changed[f"{layer.removeprefix('tower.')}.{name}"] *= factor
    save_file(changed, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(vit: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ViT with an overflow in its second block."""
    weights = {name: weight.clone() for name, weight in vit.module.state_dict().items()}
    return planted(weights, TINY_PLANTED, tmp_path_factory.mktemp("planted") / "planted.safetensors")


@pytest.fixture
def tiny(make_config: MakeConfig, shots: Path, quick_trace: None) -> MakeConfig:
    """The tiny ViT in fp16, held to what a random model allows; a checkpoint replaces its weights, and the heads."""

    def make(**changes: object) -> ExportConfig:
        values = {"precision": "fp16", "opset": OPSET, "outputs": ("logits", "embedding"), "gates": GATES}
        if "checkpoint" in changes:
            off = dict.fromkeys(("random_init", "shots", "alpha", "beta", "b2", "b3"))
            values |= {**off, "calip": False, "cache": False, "verify_data": shots}
        return make_config(**{**values, **changes})

    return make


@pytest.mark.slow
def test_an_overflow_is_pinned_and_told(tiny: MakeConfig, checkpoint: Path) -> None:
    config = tiny(checkpoint=checkpoint)

    manifest, parity = export(config)

    repair = json.loads((config.output / PARITY_FILE).read_text())["repair"]
    kept = {each["node"]: each["why"] for each in manifest.graph["precision"]["kept_in_fp32"]}
    assert (parity.status, repair["succeeded"]) == ("passed", True)
    assert {each["node"]: each["reason"] for each in repair["pinned"]} == kept
    assert repair["pinned"]
    for each in repair["pinned"]:
        assert each["node"].startswith(TINY_PLANTED)
        assert float(each["error_before"]) == math.inf
        assert 0 <= each["error_after"] < 1e-2
        assert each["node"] in (config.output / REPORT_FILE).read_text()
    assert any("beyond float16" in each["reason"] for each in repair["pinned"])


@pytest.fixture(scope="module")
def large_scores(vit: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ViT of which all scores of the second block's first head are 80,000 larger: its softmax is the same."""
    weights = {name: weight.clone() for name, weight in vit.module.state_dict().items()}
    attention = f"{TINY_BLOCK.removeprefix('tower.')}.attn"
    # The head's first channel, the same for all tokens: 1000 in queries, which are scaled by 1/4, and 320 in keys.
    for channel, number in ((0, 1000.0), (TINY_WIDTH, 320.0)):
        weights[f"{attention}.in_proj_weight"][channel] = 0.0
        weights[f"{attention}.in_proj_bias"][channel] = number
    path = tmp_path_factory.mktemp("scores") / "planted.safetensors"
    save_file({name: weight.float() for name, weight in weights.items()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("classes", ["shots", None], ids=["among other pictures", "alone"])
def test_the_search_counts_as_edge_cases_what_the_export_counts(
    tiny: MakeConfig, checkpoint: Path, tmp_path: Path, classes: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trials of other tests are remembered in the cache that they share.
    own = {"feature_cache": tmp_path / "cache", **({} if classes else {"verify_data": None})}
    asked: list[tuple[int, int]] = []

    def counted(names: list[str], *arguments: Any, edge_cases: int, **others: Any) -> Parity:
        asked.append((edge_cases, sum(name.startswith("<") for name in names)))
        return compare(names, *arguments, edge_cases=edge_cases, **others)

    monkeypatch.setattr(repair, "compare", counted)
    export(tiny(checkpoint=checkpoint, **own))

    given, named = zip(*asked, strict=True)
    assert given == named
    assert min(named) > 0


@pytest.mark.slow
def test_scores_beyond_fp16_are_pinned_with_the_softmax_that_reads_them(tiny: MakeConfig, large_scores: Path) -> None:
    manifest, parity = export(tiny(checkpoint=large_scores))

    kept = {each["node"]: each["why"] for each in manifest.graph["precision"]["kept_in_fp32"]}
    assert parity.status == "passed"
    product, softmax = sorted(kept)
    assert product.startswith(f"{TINY_BLOCK}/MatMul")
    assert "its output reaches 8e+04, beyond float16" in kept[product]
    assert softmax == f"{TINY_BLOCK}/Softmax"


def test_without_time_for_repairs_the_export_fails_and_writes_nothing(tiny: MakeConfig, checkpoint: Path) -> None:
    config = tiny(checkpoint=checkpoint, repair_minutes=0)

    with pytest.raises(ParityError, match="some answers are NaN or infinite"):
        export(config)

    assert below(config.output.parent) == set()


@pytest.mark.slow
def test_without_the_overflow_nothing_is_pinned(tiny: MakeConfig) -> None:
    manifest, parity = export(tiny())

    assert manifest.graph["precision"]["kept_in_fp32"] == []
    assert "repair" not in parity.document


@pytest.mark.slow
def test_gates_that_no_repair_reaches_fail_and_name_the_worst_layers(tiny: MakeConfig) -> None:
    config = tiny(gates={"max_relative_logit_error": 1e-9}, repair_minutes=0.2)

    with pytest.raises(ParityError, match=r"no repair after \d+ trials \(.*\); the worst layers, .*: tower\.visual"):
        export(config)

    assert below(config.output.parent) == set()


def test_a_layer_that_is_asked_for_is_kept_without_a_search(tiny: MakeConfig, checkpoint: Path) -> None:
    manifest, parity = export(tiny(checkpoint=checkpoint, pin=(TINY_PLANTED,), repair_minutes=0))

    kept = manifest.graph["precision"]["kept_in_fp32"]
    assert {each["why"] for each in kept} == {"asked for"}
    assert all(each["node"].startswith(TINY_PLANTED) for each in kept)
    assert {f"{TINY_PLANTED}.{name}/MatMul" for name in ("c_fc", "c_proj")} <= {each["node"] for each in kept}
    assert parity.status == "passed"


def drawn(colour: str, shape: str, number: int) -> Image.Image:
    """A picture of a shape, every number another."""
    image = Image.new("RGB", (64, 64), (200, 200, 190 + number))
    left, top, right, bottom = 10 + number, 12, 44 + number, 46
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=colour)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=colour)
    else:
        draw.polygon([(left, bottom), (right, bottom), (27 + number, top)], fill=colour)
    return image


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that the shipped model knows, by class."""
    folder = tmp_path_factory.mktemp("shapes")
    for name in CLASSES:
        (folder / name).mkdir()
        for number in range(4):
            drawn(*name.split(), number).save(folder / name / f"{number}.png")
    return folder


def of_shapes(shapes: Path, folder: Path, checkpoint: Path) -> ExportConfig:
    return ExportConfig(
        model=str(MODEL / "shapes-vit.json"),
        checkpoint=checkpoint,
        classes=CLASSES,
        output=folder / "result" / "out.calipso",
        templates="photo",
        calip=False,
        cache=False,
        verify_data=shapes,
        precision="fp16",
    )


@pytest.mark.slow
def test_of_a_trained_model_exactly_the_planted_layer_is_pinned(shapes: Path, tmp_path: Path) -> None:
    weights = load_file(MODEL / "shapes-vit.safetensors")
    config = of_shapes(shapes, tmp_path, planted(weights, PLANTED, tmp_path / "planted.safetensors"))

    _, parity = export(config)

    pinned = parity.document["repair"]["pinned"]
    assert parity.status == "passed"
    assert f"{PLANTED}.c_fc/MatMul" in {each["node"] for each in pinned}
    assert all(each["node"].startswith(f"{PLANTED}.") for each in pinned)
    assert {each["error_before"] for each in pinned} == {math.inf}
    assert max(each["error_after"] for each in pinned) < 5e-3


@pytest.mark.slow
def test_a_trained_model_passes_the_gates_of_fp16_without_a_repair(shapes: Path, tmp_path: Path) -> None:
    manifest, parity = export(of_shapes(shapes, tmp_path, MODEL / "shapes-vit.safetensors"))

    assert (parity.status, manifest.graph["precision"]["kept_in_fp32"]) == ("passed", [])
    assert "repair" not in parity.document
    assert parity.document["accuracy"]["drop"] == 0
