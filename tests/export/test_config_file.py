"""Settings from TOML: paths relative to the file, flags over them, and unknown names listed."""

import dataclasses
from pathlib import Path

import pytest
from export_samples import answer_or_refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calipso_export import ExportConfig, Gates
from calipso_export.cli import _config
from calipso_export.config_file import read_config
from calipso_export.precision import PRECISIONS, gates_for
from calipso_runtime.errors import UsageError

FULL = """
model = "tiny.json"
checkpoint = "weights/tiny.safetensors"
classes = "names.txt"
templates = "prompts.json"
shots = "shots"
verify_data = "../held-out"
feature_cache = "/elsewhere/cache"
output = "out.calipso"
outputs = ["logits", "tokens"]
alpha = 1.5
beta = 5.5
b2 = 1
b3 = 0.1
epochs = 3
opset = 20
overwrite = true
precision = "int8"
target = "gpu"
max_drop = 0.5
io_dtype = "fp16"
calib_data = "calib"
calib_pictures = 64
full_range = true
pin = ["tower.visual.conv1"]
repair_minutes = 2.5
preprocess = { interpolation = "bilinear" }
[gates]
max_relative_logit_error = 1e-3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration and the files it names."""
    (tmp_path / "job.toml").write_text(FULL)
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    for name in ("tiny.json", "prompts.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def write(folder: Path, content: str) -> Path:
    (folder / "other.toml").write_bytes(content.encode())
    return folder / "other.toml"


def test_every_setting_arrives(folder: Path) -> None:
    config = ExportConfig(**read_config(folder / "job.toml"))

    assert config.classes == ("ant", "bee")
    assert config.outputs == ("logits", "tokens")
    assert (config.alpha, config.beta, config.b2, config.b3) == (1.5, 5.5, 1, 0.1)
    assert (config.epochs, config.opset, config.overwrite) == (3, 20, True)
    assert (config.precision, config.target, config.io_dtype) == ("int8", "gpu", "fp16")
    assert (config.max_drop, config.repair_minutes) == (0.5, 2.5)
    assert (config.calib_pictures, config.full_range, config.pin) == (64, True, ("tower.visual.conv1",))
    assert config.gates == {"max_relative_logit_error": 1e-3}
    assert config.preprocess == {"interpolation": "bilinear"}


def test_gates_of_the_file_are_set_over_those_of_the_precision(folder: Path) -> None:
    config = ExportConfig(**read_config(folder / "job.toml"))

    found = gates_for(config, PRECISIONS["int8"])

    assert found == dataclasses.replace(PRECISIONS["int8"].gates, max_relative_logit_error=1e-3)
    assert found.min_same_top1 > Gates().min_same_top1


def test_relative_paths_are_relative_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")

    config = ExportConfig(**read_config(folder / "job.toml"))

    assert config.model == str(folder / "tiny.json")
    assert config.templates == str(folder / "prompts.json")
    assert config.checkpoint == folder / "weights" / "tiny.safetensors"
    assert config.shots == folder / "shots"
    assert config.verify_data == folder / ".." / "held-out"
    assert config.calib_data == folder / "calib"
    assert config.feature_cache == Path("/elsewhere/cache")
    assert config.output == folder / "out.calipso"


def test_names_that_are_no_files_stay_names(folder: Path) -> None:
    settings = read_config(write(folder, 'model = "ViT-B-32"\ntemplates = "photo"\nclasses = "ant, bee"'))

    assert settings == {"model": "ViT-B-32", "templates": "photo", "classes": ("ant", "bee")}


def test_classes_may_be_a_list(folder: Path) -> None:
    assert read_config(write(folder, 'classes = ["ant", "bee"]')) == {"classes": ("ant", "bee")}


def test_flags_win_over_the_file(folder: Path) -> None:
    flags = {"alpha": 2.0, "opset": "18", "outputs": "logits", "classes": "crab,ant", "overwrite": None, "b2": None}

    config = _config(folder / "job.toml", flags)

    assert (config.alpha, config.opset, config.outputs, config.classes) == (2.0, 18, ("logits",), ("crab", "ant"))
    assert (config.overwrite, config.b2) == (True, 1)


def test_a_flag_for_the_weights_replaces_the_files_choice(folder: Path) -> None:
    config = _config(folder / "job.toml", {"random_init": 4})

    assert (config.random_init, config.checkpoint) == (4, None)


def test_unknown_settings_are_listed_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"other\.toml has unknown settings: klasses, shot\. Known: activation, alpha"):
        read_config(write(folder, "shot = 1\nklasses = 2\nalpha = 1.0"))


def test_unknown_gates_are_listed_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown gates: top1\. Known: max_accuracy_drop, max_relative_logit_error"):
        read_config(write(folder, "[gates]\ntop1 = 1.0"))


@pytest.mark.parametrize("name", ["lost.toml", "."])
def test_a_missing_file_is_said(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"does not exist|cannot be read"):
        read_config(folder / name)


@pytest.mark.parametrize(
    "line",
    [
        "model = 3",
        "classes = 3",
        "classes = [1, 2]",
        "shots = 3",
        "templates = 3",
        "outputs = 3",
        "outputs = [1]",
        'outputs = "logits"',
        "gates = 3",
        'gates = { max_relative_logit_error = "small" }',
        'gates = { max_accuracy_drop = "small" }',
        "gates = { min_same_top1 = 2 }",
        'alpha = "much"\nbeta = 1.0',
        'b2 = "a"\nb3 = "b"',
        'epochs = "many"',
        "epochs = 2.5",
        'opset = "18"',
        'seed = "one"',
        'random_init = "one"',
        'calip = "no"',
        'overwrite = "no"',
        "precision = 16",
        'max_drop = "little"',
        'repair_minutes = "long"',
        "calib_data = 3",
        "calib_pictures = 2.5",
        'full_range = "no"',
        'io_dtype = "fp64"',
        'target = "tpu"',
        "pretrained = 3",
        'preprocess = "openai"',
        "preprocess = { mean = 3 }",
        'preprocess = { resize_mode = "stretch" }',
        'preprocess = { interpolation = "nearest" }',
        "preprocess = { colour = 1 }",
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(folder: Path, line: str) -> None:
    flags = {"model": "m", "classes": "ant,bee", "output": folder / "out", "random_init": 0}
    for name in [part.split(" = ")[0] for part in line.split("\n")]:
        flags.pop(name, None)
    if line.startswith("pretrained"):
        flags.pop("random_init")
    elif line.startswith("alpha"):
        flags["shots"] = folder

    with pytest.raises(UsageError):
        _config(write(folder, line), flags)


@pytest.mark.parametrize("missing", ["model", "classes", "output"])
def test_what_has_to_be_given_is_named(folder: Path, missing: str) -> None:
    flags = {"model": "m", "classes": "ant,bee", "output": Path("out"), "random_init": 0}
    del flags[missing]

    with pytest.raises(UsageError, match=f"missing --{missing}"):
        _config(None, flags)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_file_is_read_or_refused(folder: Path, content: str) -> None:
    found, refusal = answer_or_refusal(read_config, write(folder, content))

    assert "other.toml" in refusal if found is None else set(found) <= set(ExportConfig.__dataclass_fields__)
