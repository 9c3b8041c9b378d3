"""A full-size model on real photographs: features and logits of open and embedding bundles are open_clip's."""

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
PHOTOS = sorted((DATA / "images").rglob("*.jpg"))[::60]
RELATIVE = 1e-4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.realdata,
    pytest.mark.skipif(not PHOTOS, reason=f"no photographs below {DATA}; set CALIPSO_REAL_DATA"),
]


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("mode", ["open", "embed"])
def test_features_and_logits_of_real_photographs_are_open_clips(tmp_path: Path, mode: str) -> None:
    config = ExportConfig(model="ViT-B-32", random_init=0, head_mode=mode, output=tmp_path / "b.calipso")
    export(config)
    model = load_model(config)
    module: Any = model.module
    with torch.no_grad():
        images = torch.stack([model.front_end.eager_input(path) for path in PHOTOS])
        ids = model.tokenizer(list(TEXTS))
        image = functional.normalize(module.encode_image(images), dim=-1).numpy()
        text = module.encode_text(ids, normalize=True).numpy()
        logits = module.get_logits(images, ids)[0].numpy()
    paths = [str(path) for path in PHOTOS]

    with load_embedder(config.output, backend="ort") as embedder:
        assert relative(embedder.image(paths), image) < RELATIVE
        assert relative(embedder.text(TEXTS), text) < RELATIVE
    with load(config.output, backend="ort") as classifier:
        assert relative(classifier.logits(paths, prompts=TEXTS), logits) < RELATIVE
