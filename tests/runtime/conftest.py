"""Tiny real bundles, so that no test of the runtime needs torch but those that compare with open_clip."""

import ctypes
import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calipso_runtime import bundle, graph_file
from calipso_runtime.manifest import Manifest, Preprocess, write_manifest
from calipso_runtime.parity import Gates
from calipso_runtime.reference import Reference, write_reference

# Tests are imported one by one, without a package: this is how they find their samples.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "stand_ins"))

from gpu import Gpu, compile_driver
from runtime_samples import BuildTransform, MakeBundle, Transform, tiny_manifest, tiny_reference, write_model
from stand_ins import bindings
from stand_ins.bindings import Bindings, Family


@pytest.fixture(scope="session")
def open_clip_transform() -> BuildTransform:
    """open_clip's own evaluation transform for a bundle's preprocessing."""
    torch = pytest.importorskip("torch", reason="compares with open_clip, which needs torch")
    from calipso_export.torchvision_ops import ensure_torchvision_imports

    ensure_torchvision_imports()
    torch.set_num_threads(1)
    open_clip = pytest.importorskip("open_clip.transform", reason="compares with open_clip")

    def build(config: Preprocess) -> Transform:
        settings = open_clip.PreprocessCfg(
            size=config.size,
            mean=config.mean,
            std=config.std,
            interpolation=config.interpolation,
            resize_mode=config.resize_mode,
            fill_color=config.fill_color,
        )
        transform = open_clip.image_transform_v2(settings, is_train=False)
        return lambda image: transform(image).numpy()

    return build


@pytest.fixture(scope="session")
def obtain_bindings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bindings]:
    """Gives TensorRT's real Python bindings of a version on a stand-in of its libraries, kept in pytest's cache."""
    kept = getattr(request.config, "cache", None)
    folder = kept.mkdir("tensorrt-bindings") if kept else tmp_path_factory.mktemp("tensorrt-bindings")

    @functools.cache
    def give(version: str, family: Family = bindings.TENSORRT) -> Bindings:
        try:
            return bindings.obtain(version, folder, family)
        except bindings.UnavailableError as error:
            pytest.skip(str(error))

    return give


@pytest.fixture(scope="session", params=bindings.VERSIONS)
def tensorrt_bindings(request: pytest.FixtureRequest, obtain_bindings: Callable[..., Bindings]) -> Bindings:
    """The bindings of each version in turn."""
    return obtain_bindings(request.param)


@pytest.fixture(scope="session", params=bindings.RTX_VERSIONS)
def rtx_bindings(request: pytest.FixtureRequest, obtain_bindings: Callable[..., Bindings]) -> Bindings:
    """The bindings of each version of TensorRT for RTX in turn."""
    return obtain_bindings(request.param, bindings.RTX)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Writes a bundle; keywords change its manifest, `outputs` and `graph_manifest` its graph.

    With `reference` it carries that, and a parity.json with the gates.
    """

    def make(
        *,
        outputs: tuple[str, ...] = ("logits", "embedding"),
        graph_manifest: Manifest | None = None,
        reference: Reference | None = None,
        gates: Gates | None = None,
        **changes: object,
    ) -> Path:
        folder = tmp_path_factory.mktemp("bundle")
        manifest = tiny_manifest(**changes)
        model = folder / graph_file.MODEL_FILE
        write_model(model, graph_manifest or manifest, outputs=outputs)
        if reference is not None:
            write_reference(folder / bundle.REFERENCE_FILE, reference)
            document = {"gates": dataclasses.asdict(gates or Gates())}
            (folder / bundle.PARITY_FILE).write_text(json.dumps(document))
        files = {path.name: bundle.file_entry(path) for path in sorted(folder.iterdir())}
        write_manifest(folder / bundle.MANIFEST_FILE, tiny_manifest(**{"parity": "passed", **changes, "files": files}))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny(make_bundle: MakeBundle) -> Path:
    """A bundle that nobody changes."""
    return make_bundle()


@pytest.fixture(scope="session")
def checkable(make_bundle: MakeBundle) -> Path:
    """A bundle with a reference and the gates of fp32, that nobody changes."""
    return make_bundle(reference=tiny_reference())


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "own"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small JPEG."""
    rng = np.random.default_rng(1)
    path = tmp_path / "photo.jpg"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def stand_in_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for NVIDIA's driver, compiled."""
    library = compile_driver(tmp_path_factory.mktemp("stand-in"))
    if library is None:
        pytest.skip("no C compiler: the stand-in for the CUDA driver cannot be built")
    return library


@pytest.fixture
def family() -> str:
    """Which of the two libraries the machine has: parametrised where both are tested."""
    return "tensorrt"


@pytest.fixture
def gpu(stand_in_library: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> Iterator[Gpu]:
    """A machine with a GPU and TensorRT, as far as the code under test can tell; nothing of it may be misused."""
    from calipso_runtime import devices

    machine = Gpu(ctypes.CDLL(str(stand_in_library)), family)
    monkeypatch.setattr(devices, "DRIVER_LIBRARY", str(stand_in_library))
    devices.cuda_driver.cache_clear()
    for name in [name for name in sys.modules if name.startswith("calipso_runtime.backends.tensorrt")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in machine.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield machine
    devices.cuda_driver.cache_clear()
    for name in [name for name in sys.modules if name.startswith("calipso_runtime.backends.tensorrt")]:
        del sys.modules[name]
    violations = machine.violations
    machine.cuda.standin_reset()
    assert violations == 0
