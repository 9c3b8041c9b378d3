"""Tune: the parameters of the heads, as given or searched on the shots; and what the heads are made of."""

import dataclasses
from typing import Any, ClassVar

import torch

from calipso_export.config import ExportConfig
from calipso_export.fewshot.encode import PhotoFeatures
from calipso_export.fewshot.search import search_calip, search_tip_adapter
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.tip_adapter import TipAdapterParameters
from calipso_export.models import LoadedModel
from calipso_export.progress import Progress
from calipso_export.reference import HeadTensors
from calipso_export.step import Made
from calipso_export.steps.prompt import TextFeatures

_NO_BETTER = "no better on the validation photos"
_OFF = "switched off"
_GIVEN: dict[str, Any] = {"method": "given"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadRecord:
    """What the manifest says about each head: its parameters, and how they were chosen.

    Attributes:
        document: for the manifest.
        curves: validation curves by head, for `search.json`; empty where nothing was searched.
    """

    document: dict[str, Any]
    curves: dict[str, list[dict[str, float]]]


class Tune:
    """First alpha and beta, then b2 and b3 with the cache as it will be."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel, TextFeatures, PhotoFeatures)
    ensures: ClassVar[tuple[type, ...]] = (HeadTensors, HeadRecord)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, features, text = made[ExportConfig], made[PhotoFeatures], made[TextFeatures].values
        model = made[LoadedModel]
        base = model.scale * features.plain @ text.T + model.bias
        tuning = _Tuning(config, features, base, progress)
        cache = tuning.tip_adapter()
        calip = tuning.calip(cache)
        made.add(
            HeadTensors(
                text=text,
                keys=features.keys,
                labels=features.labels,
                calip=calip,
                tip_adapter=cache,
                centred=made[ExportConfig].precision != "fp32",
            )
        )
        made.add(tuning.record)


class _Tuning:
    """Chooses the parameters of each head, and notes in `record` how."""

    def __init__(self, config: ExportConfig, features: PhotoFeatures, base: torch.Tensor, progress: Progress) -> None:
        self.config = config
        self.features = features
        self.base = base
        self.progress = progress
        self.record = HeadRecord(document={"kind": "baked"}, curves={})

    def tip_adapter(self) -> TipAdapterParameters | None:
        """The cache's parameters."""
        config, features = self.config, self.features
        if not config.cache or len(features.keys) == 0:
            self._leave_out("tip_adapter", "no example photos were given" if config.cache else _OFF)
            return None
        values: dict[str, float] | None
        if config.alpha is not None and config.beta is not None:
            values, chosen = {"alpha": config.alpha, "beta": config.beta}, _GIVEN
        else:
            choice = search_tip_adapter(features, self.base, list(config.classes), self.progress)
            values, chosen = choice.values, choice.record
            self.record.curves["tip_adapter"] = choice.curve
        if values is None:
            self._leave_out("tip_adapter", _NO_BETTER, chosen)
            return None
        shots = torch.bincount(features.labels).tolist()
        self.record.document["tip_adapter"] = {
            "used": True,
            **values,
            "keys": len(features.keys),
            "shots": {"least": min(shots), "most": max(shots)},
            "epochs": None if config.shots is None else config.epochs,
            "chosen": chosen,
        }
        return TipAdapterParameters(**values)

    def calip(self, cache: TipAdapterParameters | None) -> CalipParameters | None:
        """CALIP's parameters, with that cache in place."""
        config, features = self.config, self.features
        if not config.calip:
            self._leave_out("calip", _OFF)
            return None
        values: dict[str, float] | None
        if config.b2 is not None and config.b3 is not None:
            values, chosen = {"b2": config.b2, "b3": config.b3}, _GIVEN
        elif features.calip.shape[1] == 0:
            self._leave_out("calip", "no example photos to choose b2 and b3 on: give both, or --shots")
            return None
        else:
            choice = search_calip(features, self.base, cache, self.progress)
            values, chosen = choice.values, choice.record
            self.record.curves["calip"] = choice.curve
        if values is None:
            self._leave_out("calip", _NO_BETTER, chosen)
            return None
        if not any(values.values()):
            self._leave_out("calip", "b2 and b3 are given as 0", chosen)
            return None
        self.record.document["calip"] = {"used": True, **values, "chosen": chosen}
        return CalipParameters(**values)

    def _leave_out(self, head: str, reason: str, chosen: dict[str, Any] | None = None) -> None:
        document = {"used": False, "reason": reason}
        self.record.document[head] = document if chosen is None else {**document, "chosen": chosen}
