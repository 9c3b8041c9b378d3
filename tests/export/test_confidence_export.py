"""A real export with confidence: in the manifest, in the graph's probabilities, in the report, and verified again."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from export_samples import MakeConfig, noise

import calipso_runtime
from calipso_export import ExportConfig, export
from calipso_runtime.bundle import REPORT_FILE, SEARCH_FILE
from calipso_runtime.cli import calipso
from calipso_runtime.graph_file import MODEL_FILE


@pytest.fixture
def config(make_config: MakeConfig) -> ExportConfig:
    """The shared bundle's with a threshold; zero-shot logits of random weights are far too sure of themselves."""
    return make_config(unknown_at=0.4, alpha=None, beta=None, b2=None, b3=None, calip=False, cache=False)


@pytest.mark.slow
def test_an_export_with_a_threshold_says_so_everywhere(config: ExportConfig) -> None:
    manifest, parity = export(config)
    confidence, curves = manifest.confidence, json.loads((config.output / SEARCH_FILE).read_text())
    pictures = [noise(seed) for seed in range(6)]

    with calipso_runtime.load(config.output) as whole, calipso_runtime.load(config.output / MODEL_FILE) as bare:
        probabilities = whole.probabilities(pictures)
        assert bare.confidence == whole.confidence
        found = whole.run(pictures, ("logits", "probabilities"))
        answers = whole.classify(pictures)
    report = (config.output / REPORT_FILE).read_text()
    verified = CliRunner().invoke(calipso, ["verify", str(config.output), "--model", config.model, "--backend", "ort"])

    assert parity.status == "passed"
    assert confidence["photos"] == 9
    assert confidence["unknown"]["asked"] == 0.4
    assert whole.confidence.temperature == confidence["temperature"]
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
    assert [each.is_unknown for each in answers] == [
        each.probability < confidence["unknown"]["threshold"] for each in answers
    ]
    assert sum(each["photos"] for each in curves["reliability"]) == 9
    assert len(curves["unknown"]) == 101
    assert report.count("<svg") == 2
    assert f"unknown below {confidence['unknown']['threshold']:.2%}" in report
    assert verified.exit_code == 0, verified.output


@pytest.mark.slow
def test_the_command_tells_the_temperature_and_the_threshold(config: ExportConfig, tmp_path: Path) -> None:
    arguments = ["export", "--model", config.model, "--random-init", "0", "--classes", ",".join(config.classes)]
    arguments += ["--shots", str(config.shots), "--no-calip", "--no-cache", "--unknown-at", "0.4"]
    result = CliRunner().invoke(calipso, [*arguments, "--templates", "photo", "-o", str(tmp_path / "o.calipso")])

    assert result.exit_code == 0, result.output
    assert "calibration error" in result.stdout
    assert "unknown below" in result.stdout
