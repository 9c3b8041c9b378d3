"""A full-size model and a trained one on real photographs: open and embedding bundles answer as open_clip does."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from calipso_export import ExportConfig, export
from calipso_export.models import load_model
from calipso_export.probes import TEXTS
from calipso_runtime import load, load_embedder

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("CALIPSO_REAL_DATA") or REPOSITORY.parent / "shared" / "data" / "caltech101")
PHOTOS = sorted((DATA / "images").rglob("*.jpg"))
RELATIVE = 1e-4
SHAPES = REPOSITORY / "models" / "shapes-vit" / "shapes-vit"
# With every so manieth photograph.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "ViT-B-32, random weights": ({"model": "ViT-B-32", "random_init": 0}, 30),
    "shapes-vit, trained": ({"model": f"{SHAPES}.json", "checkpoint": SHAPES.with_suffix(".safetensors")}, 1),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.realdata,
    pytest.mark.skipif(not PHOTOS, reason=f"no photographs below {DATA}; set CALIPSO_REAL_DATA"),
]


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("mode", ["open", "embed"])
@pytest.mark.parametrize("name", MODELS)
def test_features_and_logits_of_real_photographs_are_open_clips(tmp_path: Path, name: str, mode: str) -> None:
    model_settings, every = MODELS[name]
    photos = PHOTOS[::every]
    config = ExportConfig(head_mode=mode, output=tmp_path / "b.calipso", **model_settings)
    export(config)
    model = load_model(config)
    module: Any = model.module
    with torch.no_grad():
        images = torch.stack([model.front_end.eager_input(path) for path in photos])
        ids = model.tokenizer(list(TEXTS))
        image = functional.normalize(module.encode_image(images), dim=-1).numpy()
        text = module.encode_text(ids, normalize=True).numpy()
        logits = module.get_logits(images, ids)[0].numpy()
    paths = [str(path) for path in photos]

    with load_embedder(config.output, backend="ort") as embedder:
        assert relative(embedder.image(paths), image) < RELATIVE
        assert relative(embedder.text(TEXTS), text) < RELATIVE
    with load(config.output, backend="ort") as classifier:
        assert relative(classifier.logits(paths, prompts=TEXTS), logits) < RELATIVE
