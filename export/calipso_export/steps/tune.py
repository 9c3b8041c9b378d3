"""Tune: the parameters of the heads, as given or searched on the shots; and what the heads are made of."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import torch

from calipso_export.choices import BAKED, NO_CALIP
from calipso_export.config import ExportConfig
from calipso_export.fewshot.choose import choose_head
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.search import leave_one_out, search_calip
from calipso_export.heads import AUTO, attribute, candidates, few_shot_class
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.calip_fs import Learned
from calipso_export.heads.calip_fs import fit as fit_layers
from calipso_export.heads.few_shot import Added, Fit, Shots
from calipso_export.heads.tip_adapter import TipAdapter
from calipso_export.models import LoadedModel
from calipso_export.progress import Progress
from calipso_export.reference import HeadTensors
from calipso_export.step import Made
from calipso_export.steps.prompt import TextFeatures
from calipso_runtime.caching import cache_folder

_NO_BETTER = "no better on the validation photos"
_OFF = "switched off"
# Beside the curves of the heads, in `search.json`.
CANDIDATES = "candidates"
_GIVEN: dict[str, Any] = {"method": "given"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadRecord:
    """What the manifest says about each head: its parameters, and how they were chosen.

    Attributes:
        document: for the manifest.
        curves: validation curves by head and the `candidates` of "auto", for `search.json`; empty where nothing was
            searched.
    """

    document: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]


class Tune:
    """First the few-shot head, then CALIP with that head as it will be: b2 and b3, then its layers where asked for.

    Where a few-shot head is used, there is its `Fit`. The photos' tokens are let go of; where layers were learned,
    CALIP's terms in `Shots` are those of layers that were trained without each photo.
    """

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel, TextFeatures, PhotoFeatures)
    ensures: ClassVar[tuple[type, ...]] = (Shots, HeadTensors, HeadRecord)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, features, text = made[ExportConfig], made[PhotoFeatures], made[TextFeatures].values
        model, tokens = made[LoadedModel], features.tokens
        features = dataclasses.replace(features, tokens=torch.empty(len(tokens), 0, text.shape[1]))
        made.add(features)
        shots = Shots(
            photos=features,
            text=text,
            scale=model.scale,
            bias=model.bias,
            classes=config.classes,
            folder=config.feature_cache or cache_folder(),
        )
        tuning = _Tuning(config, shots, progress)
        fit = tuning.few_shot()
        if fit is not None:
            made.add(fit)
        held_out = None if fit is None else fit.held_out
        calip, layers = tuning.calip(held_out, model.why_no_tokens), None
        if config.calip_fs and (learned := tuning.calip_fs(held_out, tokens)) is not None:
            calip, layers = tuning.weights, learned.layers
            shots = dataclasses.replace(shots, photos=dataclasses.replace(features, calip=learned.held_out))
        made.add(shots)
        made.add(
            HeadTensors(
                text=text,
                few_shot=None if fit is None else fit.head,
                calip=calip,
                layers=layers,
                # What is common to all classes is large, and nothing keeps it from growing where layers are learned.
                centred=config.precision != "fp32" or layers is not None,
            )
        )
        made.add(tuning.record)


class _Tuning:
    """Chooses the parameters of each head, and notes in `record` how."""

    def __init__(self, config: ExportConfig, shots: Shots, progress: Progress) -> None:
        self.config = config
        self.shots = shots
        self.features = shots.photos
        self.progress = progress
        self.record = HeadRecord(document={"kind": "baked"}, curves={})
        self.weights: CalipParameters | None = None

    def few_shot(self) -> Fit | None:
        """The few-shot head, where there is one."""
        config, photos = self.config, self.features
        if not config.cache or len(photos.keys) == 0:
            # Of several that were asked for, the first stands for none.
            name = candidates(config.head)[0]
            self._note_few_shot(name, _left_out("no example photos were given" if config.cache else _OFF))
            return None
        name, fit, chosen = self._fitted()
        if fit is not None and fit.curve:
            self.record.curves[attribute(name)] = fit.curve
        if fit is None or fit.head is None:
            self._note_few_shot(name, _left_out(_NO_BETTER, chosen))
            return None
        shots = torch.bincount(photos.labels).tolist()
        document = {
            "used": True,
            **fit.head.parameters_by_name(),
            "keys": len(photos.keys),
            "shots": {"least": min(shots), "most": max(shots)},
            "epochs": config.epochs if config.shots is not None and config.input == "image" else None,
            "chosen": chosen,
        }
        self._note_few_shot(name, document)
        return fit

    def _fitted(self) -> tuple[str, Fit | None, dict[str, Any]]:
        """Which head, how it was fitted, None where zero-shot is no worse, and how it was chosen."""
        config = self.config
        if config.alpha is not None:
            given = self._given()
            return config.head, given, given.record
        if config.head != AUTO:
            fit = few_shot_class(config.head).fit(self.shots, self.progress)
            return config.head, fit, fit.record
        chosen = choose_head(self.shots, self.progress)
        self.record.curves[CANDIDATES] = chosen.candidates
        record = {**chosen.record, "candidates": chosen.candidates}
        return chosen.name, chosen.fit, record if chosen.fit is None else {**record, "settings": chosen.fit.record}

    def _given(self) -> Fit:
        """Tip-Adapter with the alpha and beta that were given."""
        photos, alpha, beta = self.features, self.config.alpha, self.config.beta
        if alpha is None or beta is None:
            message = "alpha and beta are given together: the configuration holds that"
            raise RuntimeError(message)
        return Fit(
            head=TipAdapter.of_shots(self.shots, alpha=alpha, beta=beta),
            record=_GIVEN,
            curve=[],
            held_out=lambda rows: alpha * leave_one_out(photos, rows, beta, len(self.shots.text)),
            refit=partial(TipAdapter.of_shots, alpha=alpha, beta=beta),
        )

    def _note_few_shot(self, name: str, document: dict[str, Any]) -> None:
        self.record.document["few_shot"] = {"name": name, **document}
        # Under its own name too: readers of the first bundles know no other head.
        is_tip_adapter = name == TipAdapter.name
        self.record.document[attribute(TipAdapter.name)] = (
            document if is_tip_adapter else _left_out(f"another head: {name}")
        )

    def calip(self, few_shot: Added | None, why_no_tokens: str | None) -> CalipParameters | None:
        """CALIP's parameters, with that head in place."""
        config, features = self.config, self.features
        if why_no_tokens is not None:
            self.record.document["calip"] = _left_out(f"not defined for this model: {why_no_tokens}")
            return None
        if not config.uses_calip:
            self.record.document["calip"] = _left_out(_OFF if config.head_mode == BAKED else NO_CALIP)
            return None
        values: dict[str, float] | None
        if config.b2 is not None and config.b3 is not None:
            values, chosen = {"b2": config.b2, "b3": config.b3}, _GIVEN
        elif features.calip.shape[1] == 0:
            self.record.document["calip"] = _left_out("no example photos to choose b2 and b3 on: give both, or --shots")
            return None
        else:
            choice = search_calip(features, self.shots.zero_shot(features), few_shot, self.progress)
            values, chosen = choice.values, choice.record
            self.record.curves["calip"] = choice.curve
        # Where they do not pay alone they may with learned layers.
        self.weights = CalipParameters(**(chosen["best"] if values is None else values))
        if values is None:
            self.record.document["calip"] = _left_out(_NO_BETTER, chosen)
            return None
        if not any(values.values()):
            self.record.document["calip"] = _left_out("b2 and b3 are given as 0", chosen)
            return None
        self.record.document["calip"] = {"used": True, **values, "chosen": chosen}
        return self.weights

    def calip_fs(self, few_shot: Added | None, tokens: torch.Tensor) -> Learned | None:
        """CALIP's layers, with that few-shot head in place, or None where they do not pay."""
        shots = dataclasses.replace(self.shots, photos=dataclasses.replace(self.features, tokens=tokens))
        base = shots.zero_shot(shots.photos)
        if few_shot is not None:
            base = base + few_shot(torch.arange(len(base)))
        if self.weights is None:
            message = "CALIP's layers are learned for its b2 and b3: the configuration holds that there are some"
            raise RuntimeError(message)
        learned = fit_layers(shots, base, self.weights, self.progress)
        self.record.curves["calip_fs"] = learned.curve
        if learned.layers is None:
            self.record.document["calip_fs"] = _left_out(_NO_BETTER, learned.record)
            return None
        self.record.document["calip_fs"] = {"used": True, **learned.record["best"], "chosen": learned.record}
        chosen = self.record.document["calip"]["chosen"]
        self.record.document["calip"] = {"used": True, **dataclasses.asdict(self.weights), "chosen": chosen}
        return learned


def _left_out(reason: str, chosen: dict[str, Any] | None = None) -> dict[str, Any]:
    document = {"used": False, "reason": reason}
    return document if chosen is None else {**document, "chosen": chosen}
