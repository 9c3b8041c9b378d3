"""The README does what it says: its commands and its Python run, and its numbers are the measured ones.

Weights cannot be downloaded in a test: `--pretrained TAG` is replaced by random weights of the same model.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent / "runtime" / "stand_ins"))

from gpu import compile_driver

ROOT = Path(__file__).resolve().parent.parent
STAND_INS = ROOT / "tests" / "runtime" / "stand_ins"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLASSES = ("cougar face", "dalmatian", "dolphin", "lamp")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(README) if name == language]


def commands() -> list[list[str]]:
    lines = [line for body in blocks("console") for line in body.splitlines() if line.startswith("$ calipso")]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [_with_random_weights(each) for each in words]


def _with_random_weights(words: list[str]) -> list[str]:
    if "--pretrained" not in words:
        return words
    at = words.index("--pretrained")
    return [*words[:at], "--random-init", "0", *words[at + 2 :]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "shots" / name).mkdir(parents=True)
        targets = [folder / "shots" / name / f"{index}.jpg" for index in range(2)]
        (folder / "photos").mkdir(exist_ok=True)
        for target in (*targets, folder / "photos" / f"{name}.jpg"):
            Image.fromarray(generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(target)
    return folder


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CALIPSO_CACHE": str(folder / "cache"), "COLUMNS": "120"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_commands_and_the_python_of_the_readme_run(workplace: Path) -> None:
    calipso = [sys.executable, "-m", "calipso_runtime"]
    # What needs a GPU runs on stand-ins that compute.
    library = compile_driver(workplace)
    assert library is not None, "the README's commands for a GPU need a C compiler here"
    gpu = [sys.executable, str(STAND_INS / "on_gpu.py"), str(library)]
    listed = commands()

    assert [words[1] for words in listed] == [
        "export",
        "classify",
        "inspect",
        "verify",
        "check",
        "doctor",
        "export",
        "debug",
        "lint",
        "build",
        "lint",
        "build",
        "check",
    ]
    for words in listed:
        # TensorRT for RTX compiles here.
        on_gpu = (words[1] == "build" and "tensorrt-rtx" not in words) or "tensorrt" in words
        done = run([*(gpu if on_gpu else calipso), *words[1:]], workplace)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    scripts = [body.replace('pretrained="laion2b_s34b_b79k"', "random_init=0") for body in blocks("python")]
    assert len(scripts) == 2
    for script in scripts:
        done = run([sys.executable, "-c", script], workplace)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        assert done.stdout


def test_the_numbers_of_the_readme_are_the_measured_ones() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_the_readme_offers_the_targets_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    offered = set(re.findall(r"\$ make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))

    assert {"demo", "test"} <= offered
    assert all(f"\n{target}: " in makefile for target in offered)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))

    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []
