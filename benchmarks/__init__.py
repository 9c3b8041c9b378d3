"""Measures what the README states. Results lie in results/, and report.py writes the README from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def keep(path: Path, document: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write results; a reader sees the old ones or the new ones."""
    partial = path.with_name(f"{path.name}.partial")
    separators = None if indent else (",", ":")
    partial.write_text(json.dumps(document, indent=indent, separators=separators) + "\n", encoding="utf-8")
    partial.replace(path)
