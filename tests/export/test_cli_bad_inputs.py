"""Every bad input gets one clear error and an exit code, and leaves nothing behind."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from export_samples import CLASSES, HEAD, RESNET, VIT, below, noise, write_model, write_shots
from PIL import Image
from safetensors.torch import save_file

from calipso_export.models import LoadedModel
from calipso_export.steps import trace as trace_step
from calipso_runtime.cli import calipso

Files = dict[str, Path]
Export = Callable[..., Result]
USAGE, FAILURE = 2, 1


@pytest.fixture
def files(tiny_vit: Path, vit: LoadedModel, shots: Path, tmp_path: Path) -> Files:
    """Good inputs and, beside them, damaged ones."""
    made = {"model": tiny_vit, "shots": shots, "result": tmp_path / "result", "folder": tmp_path}
    made["result"].mkdir()
    weights = vit.module.state_dict()
    made["weights"] = tmp_path / "tiny.safetensors"
    save_file(weights, made["weights"])
    made["cut"] = tmp_path / "cut.safetensors"
    made["cut"].write_bytes(made["weights"].read_bytes()[:100_000])
    made["cut torch"] = tmp_path / "cut.pt"
    torch.save(weights, made["cut torch"])
    made["cut torch"].write_bytes(made["cut torch"].read_bytes()[:100_000])
    made["resnet"] = write_model(tmp_path / "bad-resnet.json", RESNET)
    made["quick"] = write_model(tmp_path / "bad-quick.json", {**VIT, "quick_gelu": False})
    hub = tmp_path / "hub"
    hub.mkdir()
    shutil.copy(made["weights"], hub / "open_clip_model.safetensors")
    (hub / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    made["hub"] = hub / "open_clip_model.safetensors"
    made["own shots"] = write_shots(tmp_path / "own shots")
    return made


@pytest.fixture
def export(files: Files) -> Export:
    """`calipso export` with good inputs; keywords replace them, None leaves one out."""

    def run(**changes: Any) -> Result:
        values = {
            "--model": files["model"],
            "--random-init": 0,
            "--classes": ",".join(CLASSES),
            "--templates": "photo",
            "--shots": files["own shots"],
            "--epochs": 1,
            "--output": files["result"] / "out.calipso",
            **{f"--{name}": value for name, value in HEAD.items()},
            **{f"--{name.replace('_', '-')}": value for name, value in changes.items()},
        }
        arguments = [str(part) for name, value in values.items() if value is not None for part in (name, value)]
        return CliRunner().invoke(calipso, ["export", *arguments])

    return run


def assert_refused(result: Result, files: Files, code: int, reason: str, *, left: set[str] = frozenset()) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.match(rf"error: .*{reason}", result.stderr, re.DOTALL), result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    assert below(files["result"]) == left


MODELS: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown model": ({"model": "ViT-B-33"}, FAILURE, "open_clip has no model called 'ViT-B-33'. Did you mean"),
    "unknown tag": ({"model": "RN50", "pretrained": "nonsense", "random_init": None}, FAILURE, "Known tags"),
    "another activation": (
        {"model": "ViT-B-32", "pretrained": "openai", "random_init": None},
        FAILURE,
        "use --model ViT-B-32-quickgelu",
    ),
    "no weights at all": ({"random_init": None}, USAGE, "exactly one of pretrained, checkpoint and random_init"),
    "no model": ({"model": None}, USAGE, "missing --model"),
    "no output": ({"output": None}, USAGE, "missing --output"),
    "no class list": ({"classes": None}, USAGE, "missing --classes"),
    "no classes": ({"classes": ""}, USAGE, "holds no class names"),
    "one class": ({"classes": "ant"}, USAGE, "holds one class, 'ant'"),
    "duplicated classes": ({"classes": "ant,bee,ant"}, USAGE, r"duplicated class names: 'ant' \(2 times\)"),
    "an empty class name": ({"classes": "ant,,bee"}, USAGE, "empty class name at position 2"),
    "unknown templates": ({"templates": "nonsense"}, USAGE, "no templates are called 'nonsense'"),
    "classes and folders differ": ({"classes": "ant,bee,moth"}, USAGE, "without a folder: moth; .* a class: crab"),
    "half of a pair": ({"alpha": None}, USAGE, "alpha and beta belong together"),
}


@pytest.mark.parametrize(("changes", "code", "reason"), MODELS.values(), ids=MODELS)
def test_a_bad_request_is_refused(
    *, export: Export, files: Files, changes: dict[str, Any], code: int, reason: str
) -> None:
    assert_refused(export(**changes), files, code, reason)


@pytest.mark.parametrize(
    ("model", "checkpoint", "reason"),
    [
        ("model", "lost", "does not exist"),
        ("model", "cut", "cut.safetensors cannot be read: it is truncated"),
        ("model", "cut torch", "cut.pt cannot be read: it is truncated"),
        ("resnet", "weights", "is of another architecture than bad-resnet"),
        ("quick", "hub", "bad-quick uses GELU, but open_clip_config.json"),
    ],
)
def test_a_bad_checkpoint_is_refused(*, export: Export, files: Files, model: str, checkpoint: str, reason: str) -> None:
    path = files.get(checkpoint, files["folder"] / "lost.pt")

    result = export(model=files[model], checkpoint=path, random_init=None)

    assert_refused(result, files, FAILURE, reason)


def test_a_class_without_photos_is_refused(export: Export, files: Files) -> None:
    for path in (files["own shots"] / "bee").iterdir():
        path.unlink()

    assert_refused(export(), files, USAGE, "no photos in .*bee: every class needs at least one")


def test_a_class_with_one_photo_is_refused_by_a_head_that_needs_two(export: Export, files: Files) -> None:
    for number in (1, 2):
        (files["own shots"] / "crab" / f"{number}.png").unlink()

    result = export(alpha=None, beta=None, head="gda")

    assert_refused(result, files, USAGE, "one photo only of 'crab'")


def test_an_unreadable_photo_is_refused(export: Export, files: Files) -> None:
    (files["own shots"] / "ant" / "1.png").write_bytes(b"no photo")

    assert_refused(export(), files, USAGE, "1 of 9 pictures cannot be read:\n  .*1.png cannot be used as a picture")


def test_a_decompression_bomb_among_the_shots_is_refused(export: Export, files: Files) -> None:
    Image.new("1", (20_000, 20_000)).save(files["own shots"] / "ant" / "bomb.png")

    assert_refused(export(), files, USAGE, "bomb.png is too large to be decoded safely")


def test_an_output_that_exists_is_refused(export: Export, files: Files) -> None:
    (files["result"] / "out.calipso").mkdir()

    assert_refused(export(), files, USAGE, "out.calipso exists already", left={"out.calipso"})


def test_an_output_that_cannot_be_written_is_refused(export: Export, files: Files) -> None:
    result = export(output=files["weights"] / "out.calipso")

    assert_refused(result, files, USAGE, "out.calipso cannot be written: ")


@pytest.mark.parametrize("line", ["classes = [1, 2]", "colour = 1", "epochs = 'many'", "model = "])
def test_a_bad_configuration_file_is_refused(export: Export, files: Files, line: str) -> None:
    (files["folder"] / "job.toml").write_text(line)

    assert_refused(export(config=files["folder"] / "job.toml", classes=None), files, USAGE, "job.toml")


@pytest.mark.usefixtures("traced_once")
def test_a_failed_gate_is_a_failure(export: Export, files: Files) -> None:
    # The graph is the shared bundle's, whose keys are of two views and not of one.
    result = export(outputs="logits,embedding,probabilities,tokens")

    assert (result.exit_code, result.stderr.count("error: ")) == (FAILURE, 1)
    assert "does not answer like eager PyTorch, and no bundle was written" in result.stderr
    assert "parity: failed" in result.stdout
    assert below(files["result"]) == set()


def test_ctrl_c_exits_130_without_a_word(export: Export, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trace_step, "classifier_module", interrupt)

    result = export()

    assert (result.exit_code, result.output) == (130, "")
    assert below(files["result"]) == set()


def test_verify_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    result = CliRunner().invoke(calipso, ["verify", str(tmp_path)])

    assert result.exit_code == FAILURE
    assert result.stderr == f"error: {tmp_path} is not a Calipso bundle: it has no manifest.json\n"


def test_verify_asks_for_the_configuration_again(bundle: Path) -> None:
    result = CliRunner().invoke(calipso, ["verify", str(bundle)])

    assert result.exit_code == FAILURE
    assert "give it with --model" in result.stderr


def test_verify_refuses_pictures_that_cannot_be_read(bundle: Path, tiny_vit: Path, tmp_path: Path) -> None:
    noise(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")

    result = CliRunner().invoke(calipso, ["verify", str(bundle), "--model", str(tiny_vit), "--data", str(tmp_path)])

    assert result.exit_code == USAGE
    assert "1 of 2 pictures cannot be read" in result.stderr
