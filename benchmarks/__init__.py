"""Measures what the README states. Results lie in results/, and report.py writes the README from them."""
