"""docs/reproduce.md: its commands are valid, and on a small data set they run as they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from calipso_bench.accuracy.prepare import DATASETS
from calipso_bench.accuracy.prepare import main as prepare_command
from calipso_bench.cli import bench_command
from calipso_export.cli import export_command

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
COMMANDS = {"export": export_command, "bench": bench_command}
# Of the model that this repository ships: it knows them.
MODEL = Path(__file__).resolve().parents[2] / "models" / "shapes-vit"
CLASSES = {"red square": (200, 30, 30), "blue_square": (30, 30, 200), "green square": (30, 160, 30)}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if not line.startswith("pip")]


def test_every_option_on_the_page_exists() -> None:
    for words in commands():
        command = prepare_command if words[0] == "python" else COMMANDS[words[1]]
        arguments = words[3:] if words[0] == "python" else words[2:]
        context = click.Context(command, info_name=words[1])

        command.make_parser(context).parse_args(args=list(arguments))
        assert [words[0], *words[1:2]] in (["python", "-m"], ["calipso", "export"], ["calipso", "bench"])


def test_the_page_lists_every_data_set_where_coop_keeps_it() -> None:
    for name, known in DATASETS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
        assert f"| `{known.folder}` | `{known.images}" in row
        assert known.split is None or f"`{known.split}`" in row


def test_the_columns_for_our_own_figures_are_empty() -> None:
    lines = PAGE.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| ImageNet |"))
    rows = lines[start : start + 11]

    assert len(rows) == len(DATASETS)
    assert all(re.fullmatch(r"\| \w+ \| [\d.]+ \| [\d.]+ \| \| \| \| \|", row) for row in rows)
    assert "None of the figures in the empty columns below has been measured here" in PAGE


@pytest.mark.slow
def test_the_commands_run_on_a_small_data_set(tmp_path: Path) -> None:
    """Weights cannot be downloaded in a test: the small model that is shipped takes their place."""
    write_data(tmp_path / "data" / "caltech-101")
    for words in commands():
        replaced = [word.replace("$DATA", str(tmp_path / "data")) for word in words]
        program = [sys.executable, *replaced[1:]]
        if words[0] == "calipso":
            program = [sys.executable, "-m", "calipso_runtime", *with_shipped_model(replaced[1:])]

        # A model this small is slower on several threads.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

        assert done.returncode == 0, f"{program}\n{done.stdout}\n{done.stderr}"
    for name in ("caltech101", "caltech101-tip", "caltech101-calip"):
        assert (tmp_path / f"{name}.json").stat().st_size > 0
        assert "<h2>Confusion</h2>" in (tmp_path / f"{name}.html").read_text(encoding="utf-8")


def with_shipped_model(words: list[str]) -> list[str]:
    config, weights = str(MODEL / "shapes-vit.json"), str(MODEL / "shapes-vit.safetensors")
    if words[0] == "bench":
        return [*words, "--model", config, "--checkpoint", weights, "--threads", "1"]
    replacements = {"RN50-quickgelu": config, "--pretrained": "--checkpoint", "openai": weights}
    return [*(replacements.get(word, word) for word in words), "--epochs", "1"]


def write_data(folder: Path) -> None:
    generator = np.random.default_rng(0)
    split: dict[str, list[tuple[str, int, str]]] = {
        subset: [(f"{name}/{subset}{n}.jpg", label, name) for label, name in enumerate(CLASSES) for n in range(count)]
        for subset, count in (("train", 16), ("val", 1), ("test", 3))
    }
    for name, _, class_name in (entry for entries in split.values() for entry in entries):
        path = folder / "101_ObjectCategories" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(90, 160, (64, 64, 3), dtype=np.uint8)
        pixels[16:48, 16:48] = CLASSES[class_name]
        Image.fromarray(pixels).save(path, quality=95)
    (folder / "split_zhou_Caltech101.json").write_text(json.dumps(split), encoding="utf-8")
