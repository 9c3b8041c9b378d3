"""Accuracy of a real bundle: counted like by hand, streamed, and robust against broken pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from calipso_bench import accuracy
from calipso_runtime import load
from calipso_runtime.errors import ModelError, UsageError

CLASSES = ("ant", "bee", "crab")
PER_CLASS = 7

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise of three classes, and one file that is no picture."""
    folder = tmp_path_factory.mktemp("labelled") / "photos"
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name.upper()).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name.upper() / f"{number}.png")
    (folder / "BEE" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def document(exported: Path, exported_model: Path, photos: Path) -> dict[str, Any]:
    return accuracy.measure(exported, photos, model=exported_model, threads=1)


def test_both_sides_are_counted_like_by_hand(document: dict[str, Any], exported: Path, photos: Path) -> None:
    truth, best = document["answers"]["truth"], document["answers"]["deployed"]["best"]
    with load(exported, threads=1) as classifier:
        paths = sorted(photos.rglob("*.png"))
        expected = [prediction[0].index for prediction in classifier.classify(paths, top=1)]

    assert best == expected
    assert truth == [index for index in range(3) for _ in range(PER_CLASS)]
    hits = sum(one == other for one, other in zip(truth, best, strict=True))
    assert document["results"]["deployed"]["top1"]["hits"] == hits
    assert document["results"]["deployed"]["top1"]["share"] == hits / 21
    # With three classes the right one is always among the first five.
    assert document["results"]["deployed"]["top5"]["share"] == 1


def test_eager_and_deployed_agree(document: dict[str, Any]) -> None:
    results = document["results"]

    assert results["eager"] == results["deployed"]
    assert results["mcnemar"] == {"only_first": 0, "only_second": 0, "p_value": 1.0}
    assert results["agreement"]["top1"] == 1
    assert results["agreement"]["relative_logit_error"]["max"] < 1e-4


def test_every_branch_is_measured_and_the_last_is_the_whole(document: dict[str, Any]) -> None:
    results = document["results"]

    assert list(results["branches"]) == ["zero-shot", "+ CALIP", "+ Tip-Adapter", "+ both"]
    assert results["branches"]["+ both"]["top1"] == results["eager"]["top1"]
    assert results["branches"]["zero-shot"]["mcnemar_to_zero_shot"]["p_value"] == 1


def test_a_picture_that_cannot_be_read_is_listed_and_counts_for_nobody(document: dict[str, Any], photos: Path) -> None:
    (unreadable,) = document["unreadable"]

    assert unreadable["picture"] == "BEE/broken.jpg"
    assert "BEE/broken.jpg cannot be used as a picture" in unreadable["reason"]
    assert str(photos) not in json.dumps(document)
    assert (document["data"]["pictures"], document["data"]["read"]) == (22, 21)


def test_the_branches_are_the_reference_classifier(exported: Path, exported_model: Path, photos: Path) -> None:
    from calipso_bench.accuracy.branches import Branches
    from calipso_export.progress import silent
    from calipso_export.rebuild import rebuild
    from calipso_export.reference import EagerClassifier
    from calipso_runtime.bundle import open_bundle

    manifest = open_bundle(exported).manifest
    rebuilt = rebuild(exported, manifest, checkpoint=None, model=str(exported_model), progress=silent)
    paths = sorted(photos.rglob("*.png"))[:4]
    with torch.inference_mode():
        images = torch.stack([rebuilt.model.transform(Image.open(path)) for path in paths])
        expected = EagerClassifier(rebuilt.model, rebuilt.heads)(images)["logits"].numpy()

    found = Branches(rebuilt).logits(paths)

    np.testing.assert_allclose(found["+ both"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found["+ both"] - found["+ CALIP"], found["+ Tip-Adapter"] - found["zero-shot"], rtol=1e-3, atol=1e-4
    )


def test_torch_gets_its_threads_back(document: dict[str, Any]) -> None:
    from calipso_bench.accuracy.branches import torch_threads

    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_progress_counts_every_picture(exported: Path, exported_model: Path, photos: Path) -> None:
    told: list[tuple[str, int, int]] = []

    accuracy.measure(exported, photos, model=exported_model, threads=1, progress=lambda *what: told.append(what))

    assert [(done, total) for what, done, total in told if what == "classifying"] == [(0, 22), (16, 22), (22, 22)]


def test_pictures_none_of_which_can_be_read_are_an_error(exported: Path, exported_model: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"test": [["a.jpg", 0, "ant"], ["b.jpg", 1, "bee"]]}))

    with pytest.raises(UsageError, match=r"none of the 2 pictures can be read; the first: a\.jpg"):
        accuracy.measure(exported, tmp_path, split=split, model=exported_model)


def test_the_model_that_is_needed_is_asked_for(exported: Path, photos: Path) -> None:
    with pytest.raises(ModelError, match="--model"):
        accuracy.measure(exported, photos)
