"""Puts the scripts of examples/shapes where the tests can import them, and lets open_clip import."""

import sys
from pathlib import Path

from calipso_export.torchvision_ops import ensure_torchvision_imports

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "examples" / "shapes"))
ensure_torchvision_imports()
