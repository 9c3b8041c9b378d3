"""Keep: some of the pictures and eager PyTorch's answers, for engines that are built where there is no PyTorch."""

from typing import ClassVar

import numpy as np

from calipso_export.config import ExportConfig
from calipso_export.models import LoadedModel
from calipso_export.probes import Probes
from calipso_export.progress import Progress, track
from calipso_export.step import Made, WorkFolder
from calipso_export.steps.verify import EagerAnswers
from calipso_runtime.bundle import REFERENCE_FILE
from calipso_runtime.parity import Answers
from calipso_runtime.reference import Reference, Texts, write_reference

# Of every patch of every picture: megabytes.
_TOO_LARGE = ("tokens",)


class Keep:
    """Write those pictures that were asked at every batch size: on them the written file has passed its gates."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, WorkFolder, LoadedModel, EagerAnswers)
    ensures: ClassVar[tuple[type, ...]] = ()

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, eager, front_end = made[ExportConfig], made[EagerAnswers], made[LoadedModel].front_end
        if not config.reference:
            return
        probes = made[Probes] if config.takes_labels else None
        indices = eager.sample()
        chosen = [eager.everything[index] for index in indices]
        outputs = eager.answers.of(indices).outputs
        reference = Reference(
            pixels=np.stack(
                [
                    front_end.carried(each.content, name=each.name)
                    for each in track(chosen, "keeping pictures", progress)
                ]
            ),
            answers=Answers(outputs={name: outputs[name] for name in config.outputs if name not in _TOO_LARGE}),
            names=tuple(picture.name for picture in chosen),
            truth=tuple(picture.label for picture in chosen),
            edge_cases=len(eager.everything) - eager.given,
            given=eager.given,
            texts=None if probes is None else _texts(probes),
        )
        write_reference(made[WorkFolder].path / REFERENCE_FILE, reference)


def _texts(probes: Probes) -> Texts:
    return Texts(token_ids=probes.token_ids.numpy(), features=probes.features.numpy())
