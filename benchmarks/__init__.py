"""Measures what the README states. Results lie in results/, and report.py writes the README from them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
