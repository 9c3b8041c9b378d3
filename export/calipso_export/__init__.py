"""Calipso's exporter: an open_clip model, class names and a few photos in; one verified ONNX graph out.

>>> from calipso_export import ExportConfig, export
>>> export(ExportConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k",
...                     classes=("cat", "dog"), output="pets.calipso"))
"""

from typing import TYPE_CHECKING

from calipso_export.config import ExportConfig
from calipso_export.progress import Progress, silent
from calipso_runtime.parity import Gates, Parity

if TYPE_CHECKING:
    from calipso_runtime.manifest import Manifest

__all__ = ["ExportConfig", "Gates", "export"]


def export(config: ExportConfig, progress: Progress = silent) -> "tuple[Manifest, Parity]":
    """Export a classifier, verify the written file, and move the bundle into place.

    Args:
        config: what to export, and where to.
        progress: called as `progress(what, done, total)` during long work.

    Returns:
        The bundle's manifest, and what the verification measured.

    Raises:
        CalipsoError: see `calipso_runtime.errors`; nothing is left at the output.
    """
    # torch and open_clip take seconds to import: not for whoever only builds a configuration.
    from calipso_export.pipeline import run_steps
    from calipso_export.precision import candidates
    from calipso_export.steps import steps_for
    from calipso_runtime.manifest import Manifest

    # Before any long work: whether there is such a precision, and the opset has it.
    candidates(config)
    made = run_steps(steps_for(config), config, progress)
    return made[Manifest], made[Parity]
