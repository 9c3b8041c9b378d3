"""`calipso export` and `calipso verify`: one command from a TOML file to answers, the same bytes in every process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from export_samples import CLASSES, HEAD, below

from calipso_runtime.cli import calipso

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return lambda *arguments, **options: CliRunner().invoke(calipso, [str(part) for part in arguments], **options)


def command(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    parts = [sys.executable, "-m", "calipso_runtime", *map(str, arguments)]
    return subprocess.run(parts, capture_output=True, check=False, text=True, **options)


@pytest.fixture(scope="module")
def exported(
    tiny_vit: Path, shots: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """The shared bundle once more: by the command, in a process of its own, from a TOML file, without a store."""
    folder = tmp_path_factory.mktemp("by command")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    settings = {
        "model": str(tiny_vit),
        "random_init": 0,
        "classes": "classes.txt",
        "templates": "photo",
        "shots": str(shots),
        "epochs": 2,
        "outputs": ["logits", "embedding", "probabilities", "tokens"],
        "feature_cache": "features",
        "output": "out.calipso",
        **HEAD,
    }
    (folder / "job.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    result = command("export", "--config", folder / "job.toml", env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "out.calipso", result


@pytest.mark.slow
def test_the_command_exports_and_tells_what_it_did(exported: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    path, result = exported

    assert (result.returncode, result.stderr) == (0, "")
    # The last digits depend on the CPU: 1.0000000 on one, 0.9999999 on another.
    lowest = json.loads((path / "parity.json").read_text())["made_anew"]["text"]["min_cosine"]
    assert lowest == pytest.approx(1, abs=1e-6)
    assert f"text made anew with open_clip's own forward: 3 of 3, lowest cosine {lowest:.7f}" in result.stdout
    assert "keys made anew" in result.stdout
    assert "parity: passed" in result.stdout
    assert "alpha 1.5, beta 5.5" in result.stdout
    assert result.stdout.splitlines()[-1] == f"wrote {path}"
    assert below(path.parent) - below(path.parent / "features") >= {"out.calipso", "job.toml", "classes.txt"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "parity.json", "reference.npz", "report.html"])
def test_another_process_writes_the_same_bytes(
    exported: tuple[Path, "subprocess.CompletedProcess[str]"], bundle: Path, name: str
) -> None:
    assert (exported[0] / name).read_bytes() == (bundle / name).read_bytes()


@pytest.mark.slow
def test_the_bundle_classifies_inspects_and_verifies(
    run: Run, exported: tuple[Path, "subprocess.CompletedProcess[str]"], shots: Path, tiny_vit: Path
) -> None:
    path, _ = exported

    answers = run("classify", path, shots, "--json")
    inspected = run("inspect", path)
    verified = run("verify", path, "--model", tiny_vit, "--data", shots)
    bare = run("verify", path / "model.onnx", "--model", tiny_vit, "--json")

    assert [result.exit_code for result in (answers, inspected, verified, bare)] == [0, 0, 0, 0]
    labels = [json.loads(line)["predictions"][0]["label"] for line in answers.stdout.splitlines()]
    assert len(labels) == 9
    assert set(labels) <= set(CLASSES)
    assert "tiny-vit" in inspected.stdout
    assert "parity: passed" in verified.stdout
    assert "top-1 on 9 labelled pictures" in verified.stdout
    assert json.loads(bare.stdout)["status"] == "passed"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_trace")
def test_head_auto_prints_its_candidates(
    run: Run, tiny_vit: Path, shots: Path, feature_cache: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.calipso"

    result = run(
        *("export", "--model", tiny_vit, "--random-init", 0, "--classes", ",".join(CLASSES), "--templates", "photo"),
        *("--shots", shots, "--epochs", 2, "--head", "auto", "--no-calip", "--outputs", "logits"),
        *("--feature-cache", feature_cache, "-o", output),
    )

    assert result.exit_code == 0, result.output
    tried = json.loads((output / "search.json").read_text())["candidates"]
    table = result.stdout[result.stdout.index("heads, cross-validated on the shots") :]
    assert [each["title"] for each in tried[:3]] == ["zero-shot", "Tip-Adapter", "Tip-Adapter-F"]
    for each in tried:
        assert each["title"] in table
        assert f"{each['top1']:.2%}" in table


@pytest.mark.slow
def test_flags_alone_export_too(run: Run, tiny_vit: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.calipso"

    result = run(
        *("export", "--model", tiny_vit, "--random-init", 0, "--classes", "ant,bee", "--templates", "photo"),
        *("--outputs", "logits", "-o", output),
    )

    assert result.exit_code == 0, result.output
    assert "no example photos were given" in result.stdout
    assert json.loads((output / "manifest.json").read_text())["labels"] == ["ant", "bee"]


@pytest.mark.parametrize("name", ["export", "verify"])
def test_help_lists_every_option(run: Run, name: str) -> None:
    result = run(name, "--help")

    assert result.exit_code == 0
    for option in {"export": ("--shots", "--force", "--overwrite", "--opset"), "verify": ("--data", "--model")}[name]:
        assert option in result.stdout


@pytest.mark.parametrize("arguments", [("export", "--help"), ("verify", "--help"), ("export",)])
def test_help_and_bad_usage_do_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from calipso_runtime.cli import calipso\n"
        "try:\n    calipso(sys.argv[1:])\n"
        "finally:\n    print({'torch', 'open_clip', 'onnx', 'torchvision'} & set(sys.modules), file=sys.stderr)\n"
    )

    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=False, text=True)

    assert result.stderr.splitlines()[-1] == "set()"
