"""Bundles that nobody changes: one of a graph without torch, and one that the exporter wrote."""

import functools
import sys
from pathlib import Path

import pytest

# Tests are imported one by one, without a package: this is how they find their samples.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "runtime")]

from bench_samples import PEAKS, made_up_pictures, write_bundle  # noqa: E402 - found above

from calipso_bench import machine, sampling  # noqa: E402
from calipso_bench import pictures as pictures_module  # noqa: E402
from calipso_bench.pictures import Pictures  # noqa: E402

_made_up = functools.lru_cache(pictures_module.made_up)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of seven classes, with a cache."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny.calipso")


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """Eight made-up ones, preprocessed for the tiny bundle."""
    return made_up_pictures()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that neither measure the machine, nor wait, nor make their pictures up anew."""
    monkeypatch.setattr(machine, "peaks", lambda _: dict(PEAKS))
    monkeypatch.setattr(sampling, "PAUSE_S", 0.0)
    monkeypatch.setattr(pictures_module, "made_up", _made_up)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny ViT with random weights, CALIP and a cache; it takes some seconds."""
    import json

    import numpy as np

    from calipso_export import ExportConfig, export

    folder = tmp_path_factory.mktemp("exported")
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
    model = folder / "bench-vit.json"
    model.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    keys = np.random.default_rng(0).standard_normal((9, 32)).astype(np.float32)
    np.savez(folder / "cache.npz", keys=keys, labels=np.repeat(np.arange(3), 3))
    config = ExportConfig(
        model=str(model),
        random_init=0,
        classes=("ant", "bee", "crab"),
        templates="photo",
        cache_file=folder / "cache.npz",
        alpha=1.5,
        beta=5.5,
        b2=1.0,
        b3=0.1,
        output=folder / "tiny-vit.calipso",
    )
    export(config)
    return config.output


@pytest.fixture(scope="session")
def exported_model(exported: Path) -> Path:
    """The configuration that the exported bundle's model was made from."""
    return exported.parent / "bench-vit.json"
