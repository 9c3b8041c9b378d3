"""Which precision: what cannot be had is refused with a reason, and "auto" keeps the first that passes."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from export_samples import MakeConfig, below, noise
from precision_samples import LOOSE, OPSET

from calipso_export import ExportConfig, Gates, export
from calipso_export.cli import _config
from calipso_export.precision import ORDER, PRECISIONS, candidates, gates_for
from calipso_export.steps import frontier
from calipso_runtime import devices
from calipso_runtime.bundle import PARITY_FILE, REPORT_FILE
from calipso_runtime.devices import CudaDriver
from calipso_runtime.errors import ParityError, UsageError

NEEDED: dict[str, Any] = {"model": "ViT-B-32", "classes": ("ant", "bee"), "output": "out", "random_init": 0}
# What the tiny model's int8 does not reach, and the other precisions do.
BETWEEN = {**LOOSE, "max_relative_logit_error": 0.4}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"target": "tpu"}, "target is 'tpu': expected cpu or gpu"),
    ({"io_dtype": "bf16"}, "io_dtype is 'bf16': expected fp32 or fp16"),
    ({"max_drop": -0.1}, "max_drop is -0.1: expected percentage points from 0 to 100"),
    ({"max_drop": 101}, "max_drop is 101: expected percentage points"),
    ({"max_drop": float("nan")}, "max_drop is nan: expected percentage points"),
    ({"repair_minutes": -1}, "repair_minutes is -1: expected a finite number of at least 0"),
    ({"repair_minutes": float("inf")}, "repair_minutes is inf: expected a finite number"),
    ({"repair_minutes": float("nan")}, "repair_minutes is nan: expected a finite number"),
    ({"pin": (1,)}, r"pin is \(1,\): expected names of layers or nodes"),
    ({"calib_pictures": 0}, "calib_pictures is 0: expected at least 1"),
    ({"gates": {"top1": 0.9}}, "unknown gates: top1. Known: max_relative_logit_error"),
    ({"gates": {"min_same_top1": 99}}, "the gate min_same_top1 is 99: expected a number from 0 to 1"),
]


def config_of(**changes: Any) -> ExportConfig:
    return ExportConfig(**{**NEEDED, **changes})


@pytest.mark.parametrize(("changes", "reason"), BAD)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        config_of(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "fp64"}, r"precision is 'fp64': expected one of fp32, fp16, bf16, int8, .*, fp8, auto"),
        ({"precision": "fp8", "opset": 18}, r"precision fp8 cannot be expressed in opset 18: give --opset 20"),
        ({"precision": "int8-fp16", "opset": 18}, r"precision int8-fp16 cannot be expressed in opset 18"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused_before_the_model_is_loaded(
    make_config: MakeConfig, changes: dict[str, Any], reason: str
) -> None:
    config = make_config(**{**changes, "model": "no such model"})

    with pytest.raises(UsageError, match=reason):
        export(config)

    assert below(config.output.parent) == set()


def test_one_layer_to_pin_may_be_given_as_it_is() -> None:
    assert config_of(pin="tower.visual.conv1").pin == ("tower.visual.conv1",)


@pytest.mark.usefixtures("traced_once")
def test_a_layer_to_pin_that_is_not_there_is_said_with_those_that_are(make_config: MakeConfig) -> None:
    config = make_config(precision="fp16", pin=("tower.visual.conv9",))

    with pytest.raises(UsageError, match=r"pin names 'tower\.visual\.conv9', and .* Layers: .*tower\.visual\.conv1"):
        export(config)

    assert below(config.output.parent) == set()


@pytest.mark.parametrize("text", ["min_same_top1", "min_same_top1=", "min_same_top1=much", "=1=2"])
def test_a_gate_on_the_command_line_is_a_name_and_a_number(text: str) -> None:
    with pytest.raises(UsageError, match="expected NAME=VALUE, such as min_same_top1="):
        _config(None, {**NEEDED, "classes": "ant,bee", "gates": (text,)})


def test_gates_and_pins_of_the_command_line_arrive() -> None:
    flags = {"gates": ("min_same_top1=0.5", "max_accuracy_drop=0.1"), "pin": ("a", "b"), "precision": "int8"}

    config = _config(None, {**NEEDED, "classes": "ant,bee", **flags})

    assert config.gates == {"min_same_top1": 0.5, "max_accuracy_drop": 0.1}
    assert config.pin == ("a", "b")


@pytest.mark.parametrize("name", PRECISIONS)
def test_gates_are_those_of_the_precision_unless_set(name: str) -> None:
    precision = PRECISIONS[name]

    assert gates_for(config_of(precision=name), precision) == precision.gates
    some = gates_for(config_of(precision=name, gates={"min_embedding_cosine": 0.5}), precision)
    assert some == dataclasses.replace(precision.gates, min_embedding_cosine=0.5)
    assert gates_for(config_of(precision=name, gates=Gates()), precision) == Gates()


def test_for_auto_the_accuracy_that_may_be_lost_is_given_in_points() -> None:
    config = config_of(precision="auto", max_drop=0.25)

    assert gates_for(config, PRECISIONS["int8"]).max_accuracy_drop == pytest.approx(0.0025)
    assert gates_for(config, PRECISIONS["fp32"]).max_accuracy_drop == pytest.approx(0.0025)


@pytest.mark.parametrize(
    ("problem", "target", "wanted"),
    [("none", None, "cpu"), (None, None, "gpu"), ("none", "gpu", "gpu"), (None, "cpu", "cpu")],
)
def test_auto_tries_what_is_fast_on_the_target_first(
    monkeypatch: pytest.MonkeyPatch, problem: str | None, target: str | None, wanted: str
) -> None:
    monkeypatch.setattr(devices, "cuda_driver", lambda: CudaDriver(problem=problem))

    found = candidates(config_of(precision="auto", target=target, opset=20))

    assert [precision.name for precision in found] == list(ORDER[wanted])
    assert found[-1].name == "fp32"


def test_auto_leaves_out_what_the_opset_cannot_express() -> None:
    found = [precision.name for precision in candidates(config_of(precision="auto", target="gpu", opset=18))]

    assert found == [name for name in ORDER["gpu"] if name not in ("fp8", "int8-fp16")]


def auto(make_config: MakeConfig, data: Path, **changes: object) -> ExportConfig:
    values = {"target": "cpu", "verify_data": data, "opset": OPSET, "outputs": ("logits", "embedding")}
    return make_config(**{**values, "precision": "auto", "repair_minutes": 0, "max_drop": 100, **changes})


@pytest.fixture
def quick(quick_trace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each precision for a moment only."""
    monkeypatch.setattr(frontier, "_SECONDS", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_auto_keeps_the_first_that_passes_and_reports_all_it_tried(make_config: MakeConfig, shots: Path) -> None:
    config = auto(make_config, shots, gates=BETWEEN)

    manifest, parity = export(config)

    points = json.loads((config.output / PARITY_FILE).read_text())["frontier"]
    assert [point["precision"] for point in points] == ["int8", "int8-dynamic"]
    assert [bool(point["failures"]) for point in points] == [True, False]
    assert (manifest.precision, parity.status) == ("int8-dynamic", "passed")
    for point in points:
        assert point["bytes"] > 100_000
        assert point["cpu_time_to_fp32"] > 0
        low, high = point["drop_interval_95"]
        assert low <= point["drop"] <= high
    page = (config.output / REPORT_FILE).read_text()
    assert "Tried, fastest first" in page
    assert "<td>int8-dynamic</td>" in page
    assert "<circle" in page


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_auto_without_anything_that_passes_writes_nothing(make_config: MakeConfig, shots: Path) -> None:
    config = auto(make_config, shots, gates={"max_relative_logit_error": 0.0}, repair_minutes=0.02)

    with pytest.raises(ParityError, match=r"does not answer like eager PyTorch, and no bundle was written") as caught:
        export(config)

    tried = [point["precision"] for point in caught.value.parity.document["frontier"]]
    assert tried == list(ORDER["cpu"])
    assert re.search(r"int8: .*the worst layers, by the error that each adds alone: tower\.visual", str(caught.value))
    assert below(config.output.parent) == set()


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("labelled", [None, False])
def test_auto_needs_pictures_of_known_classes(make_config: MakeConfig, tmp_path: Path, labelled: bool | None) -> None:
    data = None
    if labelled is False:
        data = tmp_path / "held-out"
        data.mkdir()
        noise(7).save(data / "unlabelled.png")
    config = make_config(precision="auto", verify_data=data)

    with pytest.raises(UsageError, match=r"no picture to verify on has a known class: give --verify-data DIR"):
        export(config)

    assert below(config.output.parent) == set()
