"""Load: the configuration -> an open_clip model with its weights."""

from typing import ClassVar

from calipso_export.config import ExportConfig
from calipso_export.models import LoadedModel, load_model
from calipso_export.progress import Progress
from calipso_export.step import Made


class Load:
    """Build the model, and load its weights."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig,)
    ensures: ClassVar[tuple[type, ...]] = (LoadedModel,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        progress("loading the model", 0, 1)
        made.add(load_model(made[ExportConfig]))
        progress("loading the model", 1, 1)
