"""Accuracy on pictures that mean something: a trained model on its drawn task, and real photographs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calipso_bench import accuracy
from calipso_bench.accuracy.branches import torch_threads
from calipso_export import ExportConfig, export

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "models" / "shapes-vit"
DATA = Path(os.environ.get("CALIPSO_REAL_DATA") or REPOSITORY.parent / "shared" / "data" / "caltech101")
PHOTOS = DATA / "images"
SHOTS, HELD_OUT = 4, 5

pytestmark = pytest.mark.slow


def exported(output: Path, **settings: Any) -> Path:
    # Models this small are slower on several threads.
    with torch_threads(1):
        export(ExportConfig(templates="photo", output=output, epochs=2, **settings))
    return output


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The trained model on classes that it has never seen, with both branches."""
    folder = tmp_path_factory.mktemp("shapes")
    script = REPOSITORY / "examples" / "shapes" / "draw.py"
    options = ["--out", str(folder / "task"), "--shots", str(SHOTS), "--held-out", str(HELD_OUT)]
    subprocess.run([sys.executable, str(script), *options], check=True, capture_output=True)
    bundle = exported(
        folder / "shapes.calipso",
        model=str(MODEL / "shapes-vit.json"),
        checkpoint=MODEL / "shapes-vit.safetensors",
        classes=tuple((folder / "task" / "classes.txt").read_text(encoding="utf-8").splitlines()),
        shots=folder / "task" / "shots",
        verify_data=folder / "task" / "shots",
        alpha=3.75,
        beta=7.6,
        b2=0.48,
        b3=0.0015,
    )
    return accuracy.measure(
        bundle,
        folder / "task" / "held-out",
        checkpoint=MODEL / "shapes-vit.safetensors",
        model=MODEL / "shapes-vit.json",
        threads=1,
    )


def test_the_trained_model_scores_far_above_chance_and_alike_on_both_sides(shapes: dict[str, Any]) -> None:
    results = shapes["results"]

    assert shapes["data"]["read"] == 30 * HELD_OUT
    assert results["eager"]["top1"] == results["deployed"]["top1"]
    low, high = results["deployed"]["top1"]["interval_95"]
    assert 10 / 30 < low < results["deployed"]["top1"]["share"] < high
    assert results["deployed"]["top5"]["share"] > 0.9
    assert results["agreement"]["relative_logit_error"]["max"] < 1e-4
    assert len(results["per_class"]) == 30
    assert sum(row["deployed"] for row in results["per_class"]) == results["deployed"]["top1"]["hits"]


def test_the_branches_change_answers_of_the_trained_model(shapes: dict[str, Any]) -> None:
    branches = shapes["results"]["branches"]

    assert list(branches) == ["zero-shot", "+ CALIP", "+ Tip-Adapter", "+ both"]
    test = branches["+ Tip-Adapter"]["mcnemar_to_zero_shot"]
    assert test["only_first"] + test["only_second"] > 0
    gained = branches["+ Tip-Adapter"]["top1"]["hits"] - branches["zero-shot"]["top1"]["hits"]
    assert gained == test["only_second"] - test["only_first"]


@pytest.mark.realdata
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no real photographs at {PHOTOS} (set CALIPSO_REAL_DATA)")
def test_photographs_of_a_split_file_get_the_same_answers_on_both_sides(exported_model: Path, tmp_path: Path) -> None:
    with (PHOTOS / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    split = {
        subset: [[row["path"], int(row["label"]), row["class"]] for row in rows if row["split"] == subset]
        for subset in ("val", "test")
    }
    (tmp_path / "split.json").write_text(json.dumps(split), encoding="utf-8")
    classes = tuple(dict.fromkeys(row["class"].replace("_", " ").title() for row in rows))
    keys = np.random.default_rng(0).standard_normal((2 * len(classes), 32)).astype(np.float32)
    np.savez(tmp_path / "keys.npz", keys=keys, labels=np.arange(len(classes)).repeat(2))
    head = {"cache_file": tmp_path / "keys.npz", "alpha": 1.5, "beta": 5.5, "b2": 1.0, "b3": 0.1}
    bundle = exported(tmp_path / "photos.calipso", model=str(exported_model), random_init=0, classes=classes, **head)

    document = accuracy.measure(bundle, PHOTOS, split=tmp_path / "split.json", model=exported_model, threads=1)

    assert document["data"]["read"] == len(split["test"])
    assert document["unreadable"] == []
    assert document["results"]["agreement"]["top1"] == 1
    assert document["results"]["agreement"]["relative_logit_error"]["max"] < 1e-4
    assert document["answers"]["truth"] == [classes.index(c.replace("_", " ").title()) for *_, c in split["test"]]
