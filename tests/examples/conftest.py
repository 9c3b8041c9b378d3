"""Puts the scripts of the examples where the tests can import them, lets open_clip import, and exports for hosts."""

import sys
from pathlib import Path

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
    shipped = REPOSITORY / "models" / "shapes-vit" / "shapes-vit"
    forms = {
        "any": {"pixels": True},
        "fixed": {"pixels": True, "pixels_size": "96x128", "channel_order": "rgba"},
    }
    for name, settings in forms.items():
        export(
            ExportConfig(
                model=f"{shipped}.json",
                checkpoint=Path(f"{shipped}.safetensors"),
                classes=("circle", "square", "triangle", "star"),
                calip=False,
                output=folder / name,
                **settings,
            )
        )
    return folder
