"""Puts the scripts of the examples where the tests can import them, lets open_clip import, and exports for hosts."""

import sys
from pathlib import Path
from typing import Any

import pytest

from calipso_export import ExportConfig, export
from calipso_export.torchvision_ops import ensure_torchvision_imports

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "examples" / name) for name in ("", "shapes", "solids", "web")]
sys.path.append(str(REPOSITORY / "tests" / "runtime"))
sys.path.insert(0, str(Path(__file__).parent))
ensure_torchvision_imports()


@pytest.fixture(scope="session")
def pixel_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in a folder: `any` takes pictures of any size, `fixed` RGBA of one."""
    folder = tmp_path_factory.mktemp("hosts")
    export_shipped(folder / "any")
    export_shipped(folder / "fixed", pixels_size="96x128", channel_order="rgba")
    return folder


@pytest.fixture(scope="session")
def bundles_for_python(pixel_bundles: Path) -> dict[str, Path]:
    """Beside these, by the kind of their head: bundles of raw pixels, with classes, that no other host can use."""
    bundles = {kind: pixel_bundles / kind for kind in ("open", "embed", "inputs")}
    for kind, bundle in bundles.items():
        export_shipped(bundle, head_mode=kind)
    return bundles


def export_shipped(output: Path, **settings: Any) -> None:
    shipped = REPOSITORY / "models" / "shapes-vit" / "shapes-vit"
    export(
        ExportConfig(
            model=f"{shipped}.json",
            checkpoint=Path(f"{shipped}.safetensors"),
            classes=("circle", "square", "triangle", "star"),
            calip=False,
            pixels=True,
            output=output,
            **settings,
        )
    )
