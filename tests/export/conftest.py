"""Tiny real models, loaded once, and one exported bundle that many tests read."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from calipso_export import ExportConfig, export
from calipso_export.clip import open_clip
from calipso_export.models import LoadedModel, load_model

# Tests are imported one by one, without a package: this is how they find their samples.
sys.path.insert(0, str(Path(__file__).parent))

from export_samples import CLASSES, RESNET, MakeConfig, shared_config, trace_only_once, write_model, write_shots
from precision_samples import LOOSE, OPSET, ExportLow, Traces

from calipso_export.steps import trace as trace_step
from calipso_runtime.engines.judge import Judge


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """open_clip reads its whole vocabulary anew for every model, which takes longer than a tiny model does."""
    made: dict[str, Any] = {}

    def tokenizer(**settings: object) -> Any:
        key = repr(sorted(settings.items()))
        if key not in made:
            made[key] = open_clip.SimpleTokenizer(**settings)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip.factory, "SimpleTokenizer", tokenizer)
        yield


@pytest.fixture
def judge() -> Iterator[Judge]:
    """Asks TensorRT for RTX about graphs."""
    with Judge() as started:
        yield started


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a tiny ViT."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-vit.json")


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a tiny ModifiedResNet."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-resnet.json", RESNET)


@pytest.fixture(scope="session")
def vit(tiny_vit: Path) -> LoadedModel:
    """The tiny ViT, with random weights."""
    return load_model(ExportConfig(model=str(tiny_vit), classes=CLASSES, output=Path("unused"), random_init=0))


@pytest.fixture(scope="session")
def resnet(tiny_resnet: Path) -> LoadedModel:
    """The tiny ModifiedResNet, with random weights and random batch norms."""
    return load_model(ExportConfig(model=str(tiny_resnet), classes=CLASSES, output=Path("unused"), random_init=0))


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Example photos that nobody changes."""
    return write_shots(tmp_path_factory.mktemp("photos") / "shots")


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the encoded photos of the shared bundle."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def make_config(tiny_vit: Path, shots: Path, feature_cache: Path, tmp_path: Path) -> MakeConfig:
    """The configuration of the shared bundle, written elsewhere, with changes."""

    def make(**changes: object) -> ExportConfig:
        output = tmp_path / "result" / "out.calipso"
        values = {"model": str(tiny_vit), "shots": shots, "feature_cache": feature_cache, "output": output}
        return shared_config(**{**values, **changes})

    (tmp_path / "result").mkdir()
    return make


@pytest.fixture(scope="session")
def bundle(tiny_vit: Path, shots: Path, feature_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny ViT with CALIP and a cache, and all outputs; nobody changes it."""
    output = tmp_path_factory.mktemp("bundle") / "tiny.calipso"
    config = shared_config(model=str(tiny_vit), shots=shots, feature_cache=feature_cache, output=output)
    export(config)
    return config.output


@pytest.fixture
def traced_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """See `trace_only_once`."""
    trace_only_once(bundle, monkeypatch)


@pytest.fixture(scope="session")
def traces() -> Traces:
    """Every trace of the session's exports in low precision."""
    return Traces()


@pytest.fixture
def quick_trace(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    """See `Traces`."""
    monkeypatch.setattr(trace_step, "trace", traces)


@pytest.fixture(scope="session")
def low_bundle(
    tiny_vit: Path, shots: Path, feature_cache: Path, traces: Traces, tmp_path_factory: pytest.TempPathFactory
) -> ExportLow:
    """The bundle of a precision and an opset, exported once with loose gates; nobody changes it."""
    made: dict[tuple[str, int], Path] = {}

    def exported(precision: str, opset: int = OPSET) -> Path:
        if (precision, opset) not in made:
            output = tmp_path_factory.mktemp("low") / f"{precision}.calipso"
            config = shared_config(
                model=str(tiny_vit),
                shots=shots,
                feature_cache=feature_cache,
                output=output,
                outputs=("logits", "embedding"),
                opset=opset,
                precision=precision,
                gates=LOOSE,
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trace_step, "trace", traces)
                export(config)
            made[precision, opset] = output
        return made[precision, opset]

    return exported
