"""`calipso debug`: where a bundle loses its answers, layer by layer, as a table, a page and JSON."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from export_samples import MakeConfig
from precision_samples import ExportLow
from safetensors.torch import save_file

from calipso_export import ExportConfig
from calipso_export.debug import debug, debug_html
from calipso_export.models import load_model
from calipso_export.precision.layers import LayerError
from calipso_export.progress import silent
from calipso_export.report_precision import layer_plot
from calipso_runtime.cli import calipso
from calipso_runtime.errors import ModelError

Debug = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("quick_trace")


@pytest.fixture
def run(tiny_vit: Path) -> Debug:
    def command(bundle: Path, *arguments: object) -> Result:
        return CliRunner().invoke(calipso, ["debug", str(bundle), "--model", str(tiny_vit), *map(str, arguments)])

    return command


def test_the_layers_that_lose_most_are_printed_worst_first(run: Debug, low_bundle: ExportLow) -> None:
    result = run(low_bundle("fp16"), "--most", 3)

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("layers by the error that each adds alone")
    assert result.stdout.count("float16") == 3
    losses = [float(found) for found in re.findall(r"float16\D+(\d\.\de-\d\d)", result.stdout)]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)


def test_json_holds_every_layer_in_the_graphs_order(run: Debug, low_bundle: ExportLow, shots: Path) -> None:
    result = run(low_bundle("fp16"), "--json", "--data", shots)

    rows = json.loads(result.stdout, parse_constant=pytest.fail)
    assert result.exit_code == 0
    assert set(rows[0]) == {"node", "operator", "kind", "error", "own_error", "peak"}
    assert rows[-1]["kind"] == "float"
    names = [row["node"] for row in rows]
    assert names.index("tower.visual.conv1/Conv") < names.index(
        "tower.visual.transformer.resblocks.1.ln_2/LayerNormalization"
    )
    halves = [row for row in rows if row["kind"] == "float16" and row["operator"] == "MatMul"]
    assert len(halves) > 5
    assert all(1e-5 < row["own_error"] < 2e-3 for row in halves)


def test_the_page_has_a_table_of_every_layer_and_a_plot(run: Debug, low_bundle: ExportLow, tmp_path: Path) -> None:
    result = run(low_bundle("fp16"), "--html", tmp_path / "layers.html")

    page = (tmp_path / "layers.html").read_text()
    assert result.exit_code == 0
    assert f"wrote {tmp_path / 'layers.html'}" in result.stderr
    assert page.count("<polyline") == 2
    assert page.count("<tr>") > 40
    assert "<td>tower.visual.conv1/Conv</td>" in page


def test_a_page_that_cannot_be_written_is_said(run: Debug, low_bundle: ExportLow, tmp_path: Path) -> None:
    result = run(low_bundle("fp16"), "--html", tmp_path / "lost" / "layers.html")

    assert result.exit_code != 0
    assert "layers.html cannot be written: No such file or directory" in result.stderr


@pytest.mark.slow
def test_an_fp32_bundle_has_no_errors(bundle: Path, tiny_vit: Path) -> None:
    rows = debug(bundle, data=None, checkpoint=None, model=str(tiny_vit), progress=silent)

    assert len(rows) > 40
    assert max(row.error for row in rows) < 1e-6
    assert {row.kind for row in rows} == {"float"}
    assert max(row.peak for row in rows) > 1


def test_eight_bit_layers_lose_more_than_16_bit_ones(low_bundle: ExportLow, tiny_vit: Path) -> None:
    worst = {
        name: max(
            row.own_error
            for row in debug(low_bundle(name), data=None, checkpoint=None, model=str(tiny_vit), progress=silent)
        )
        for name in ("fp16", "int8")
    }

    assert worst["int8"] > 5 * worst["fp16"]


def test_other_weights_than_the_bundles_are_refused(low_bundle: ExportLow, tiny_vit: Path, tmp_path: Path) -> None:
    other = load_model(ExportConfig(model=str(tiny_vit), classes=("a", "b"), output=tmp_path, random_init=1))
    save_file(other.module.state_dict(), tmp_path / "other.safetensors")

    with pytest.raises(ModelError, match=r"these weights are not those that .*fp16\.calipso was made from"):
        debug(
            low_bundle("fp16"),
            data=None,
            checkpoint=tmp_path / "other.safetensors",
            model=str(tiny_vit),
            progress=silent,
        )


@pytest.mark.parametrize("name", ["lost.calipso", "."])
def test_what_is_no_bundle_is_said(run: Debug, make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    result = run(tmp_path / name)

    assert result.exit_code != 0
    assert result.stderr.startswith("error: ")


def test_errors_that_are_not_finite_are_words_in_the_table_and_gaps_in_the_plot() -> None:
    def row(name: str, error: float) -> LayerError:
        return LayerError(node=name, operator="MatMul", kind="float16", error=error, own_error=error, peak=1e6)

    page = debug_html("<layers>", [row("a", 1e-3), row("b", float("inf")), row("c", 1e-2)])

    assert "<td>inf</td>" in page
    assert "&lt;layers&gt;" in page
    points = page.split("points='")[1].split("'")[0].split()
    assert len(points) == 2
    assert layer_plot([("a", 0.0, float("inf"))]) == ""
