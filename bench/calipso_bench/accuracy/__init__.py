"""Accuracy of a bundle on labelled pictures: deployed against eager PyTorch, with and without its branches."""

from calipso_bench.accuracy.measure import KIND, SCHEMA_VERSION, measure
from calipso_bench.accuracy.report import markdown, page

__all__ = ["KIND", "SCHEMA_VERSION", "markdown", "measure", "page"]
