"""Probe: a bundle that takes any labels has no head; what stands for one are fixed texts, and the tokenizer."""

import dataclasses
from typing import Any, ClassVar

from calipso_export.choices import NO_OPEN_CALIP
from calipso_export.config import ExportConfig
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.heads.tip_adapter import TipAdapter
from calipso_export.models import LoadedModel
from calipso_export.probes import Probes, probe
from calipso_export.progress import Progress
from calipso_export.reference import HeadTensors
from calipso_export.step import Made, WorkFolder
from calipso_export.steps.assess import Assessed
from calipso_export.steps.shots import no_features
from calipso_export.steps.tune import HeadRecord
from calipso_export.templates import Prompts
from calipso_export.tokenizers import write_tokenizer
from calipso_runtime.bundle import TOKENIZER_FILE

_NO_HEAD = "labels are given when the bundle is used"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """The manifest's table `tokenizer`."""

    document: dict[str, Any]


class Probe:
    """Write the tokenizer, and let the fixed texts take the place of classes."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, WorkFolder, LoadedModel, Prompts)
    ensures: ClassVar[tuple[type, ...]] = (
        Probes,
        TokenizerRecord,
        PhotoFeatures,
        HeadTensors,
        HeadRecord,
        Assessed,
    )

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, model = made[ExportConfig], made[LoadedModel]
        progress("encoding texts", 0, 1)
        probes = probe(model, config.classes, made[Prompts])
        made.add(probes)
        settings = write_tokenizer(model.tokenizer, made[WorkFolder].path / TOKENIZER_FILE)
        made.add(TokenizerRecord(document=settings.as_json()))
        made.add(no_features(probes.features))
        made.add(HeadTensors(text=probes.features))
        made.add(HeadRecord(document=_document(), curves={}))
        made.add(Assessed(document={"temperature": 1.0, "reason": _NO_HEAD}))
        progress("encoding texts", 1, 1)


def _document() -> dict[str, Any]:
    nothing = {"used": False, "reason": _NO_HEAD}
    return {
        "few_shot": {"name": TipAdapter.name, **nothing},
        "tip_adapter": nothing,
        "calip": {"used": False, "reason": NO_OPEN_CALIP},
    }
