"""Commands of other packages: listed without being imported, and clear where they cannot be."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from calipso_runtime.cli import calipso
from calipso_runtime.commands import plugins

Install = Callable[..., None]

GREET = """
import click
from calipso_runtime.errors import ShotsError

@click.command()
@click.argument("name")
@click.option("--fail", is_flag=True)
def greet(name, fail):
    \"\"\"Greet NAME.\"\"\"
    if fail:
        raise ShotsError("no shots")
    click.echo(f"hello {name}")

number = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with one entry point on the path."""

    def put(name: str, target: str, source: str) -> None:
        folder = tmp_path / "site" / f"plugin_{name}-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin_{name}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[calipso.commands]\n{name} = {target}\n")
        (tmp_path / "site" / f"plugin_{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        importlib.invalidate_caches()
        plugins._entry_points.cache_clear()

    yield put
    for module in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[module]
    plugins._entry_points.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(calipso, list(arguments))


def test_a_plugin_is_listed_without_being_imported(install: Install) -> None:
    install("greet", "plugin_greet:greet", "raise RuntimeError('imported')")

    result = run("--help")

    assert result.exit_code == 0
    assert "  greet " in result.stdout
    assert "plugin_greet" not in sys.modules


def test_a_plugin_runs_with_its_own_help_and_options(install: Install) -> None:
    install("greet", "plugin_greet:greet", GREET)

    assert run("greet", "you").stdout == "hello you\n"
    assert "Greet NAME." in run("greet", "--help").stdout
    assert run("greet").exit_code == 2


def test_a_plugins_error_is_told_like_our_own(install: Install) -> None:
    install("greet", "plugin_greet:greet", GREET)

    result = run("greet", "you", "--fail")

    assert (result.exit_code, result.stderr) == (2, "error: no shots\n")


def test_a_plugin_that_misses_a_module_names_it_and_the_extra(install: Install) -> None:
    install("export", "plugin_export:export", "import a_framework_that_is_missing")

    result = run("export", "--help")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: `calipso export` needs a_framework_that_is_missing, which is not installed: "
        "pip install 'calipso[export]'\n"
    )


@pytest.mark.parametrize(
    ("target", "told"),
    [("plugin_odd:absent", "cannot be loaded from plugin_odd:absent"), ("plugin_odd:number", "is a int, not a click")],
)
def test_a_plugin_that_is_no_command_is_one_error(install: Install, target: str, told: str) -> None:
    install("odd", target, GREET)

    result = run("odd")

    assert result.exit_code == 1
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "extra"), [("export", "export"), ("verify", "export"), ("bench", "bench")])
def test_a_command_that_is_not_installed_names_its_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_entry_points", dict)

    result = run(name, "anything", "--at-all")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: `calipso {name}` is not installed: pip install 'calipso[{extra}]'\n"


def test_a_plugin_cannot_replace_our_own_command(install: Install) -> None:
    install("doctor", "plugin_doctor:greet", GREET)

    assert "what this machine can run" in run("doctor", "--help").stdout


def test_help_imports_no_torch() -> None:
    code = """
import sys
from calipso_runtime.cli import calipso
calipso(["--help"], standalone_mode=False)
print(sorted({"torch", "open_clip", "onnx", "onnxruntime", "tensorrt", "PIL"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.stdout.splitlines()[-1] == "[]"
