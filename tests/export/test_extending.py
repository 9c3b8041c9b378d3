"""docs/extending.md is followed word by word: a tower family of its own, in a copy of the exporter and of its tests."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from export_samples import TEXT, write_model, write_shots

ROOT = Path(__file__).parents[2]
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def steps_of(heading: str) -> list[str]:
    """The code of a section, block by block."""
    section = (ROOT / "docs" / "extending.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^ *```(?:python)?\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


def insert(path: Path, text: str, *, above: str) -> None:
    content = path.read_text()
    assert content.count(above) == 1, (path, above)
    path.write_text(content.replace(above, text + above))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The exporter and its tests, with the family of the documentation."""
    for folder in ("export", "tests/export"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=_IGNORED)
    # All that lies beside conftest.py goes along: it loads plugins from there.
    for file in (ROOT / "pyproject.toml", *(ROOT / "tests").glob("*.py")):
        shutil.copy(file, tmp_path / file.relative_to(ROOT))
    family, importing, line, case = steps_of("A tower")
    towers = tmp_path / "export" / "calipso_export" / "towers"
    (towers / "timm_resnet.py").write_text(family)
    insert(towers / "__init__.py", importing, above="from calipso_export.towers.timm_trunk import")
    insert(towers / "__init__.py", textwrap.indent(line.strip(), "    ") + "\n", above="    TimmTower,\n)")
    samples = tmp_path / "tests" / "export" / "tower_samples.py"
    insert(samples, textwrap.indent(case.strip(), "    ") + "\n", above='    "MobileCLIP-S": _vision(')
    return tmp_path


def run(copy: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    paths = [str(copy / "export"), *(str(ROOT / name) for name in ("runtime", "bench", "."))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_documented_family_passes_the_tests_of_all_families(copy: Path) -> None:
    result = run(copy, "pytest", "tests/export/test_towers_timm.py", "-q", "-k", "timm-resnet")

    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert re.search(r"^[5-9] passed", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.slow
def test_the_documented_family_exports_with_calip(copy: Path, tmp_path: Path) -> None:
    vision = {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    model = write_model(tmp_path / "tiny-timm-resnet.json", {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT})
    shots = write_shots(tmp_path / "shots")
    settings = ["--model", str(model), "--random-init", "0", "--classes", "ant,bee,crab", "--shots", str(shots)]
    settings += ["--calip", "--b2", "1", "--b3", "0.1", "--no-cache", "--templates", "photo"]

    result = run(copy, "calipso_runtime", "export", *settings, "-o", "out.calipso", "--feature-cache", "features")

    assert result.returncode == 0, result.stderr
    manifest = (tmp_path / "out.calipso" / "manifest.json").read_text()
    assert '"family": "timm-resnet"' in manifest
