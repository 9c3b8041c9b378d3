"""Repair: which layers cannot take a precision, found on the pictures that went wrong."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.config import ExportConfig
from calipso_export.models import LoadedModel
from calipso_export.precision import Precision, gates_for
from calipso_export.precision.calibrate import digest
from calipso_export.precision.layers import LayerError, layer_errors
from calipso_export.precision.lower import Lowered
from calipso_export.precision.repair import Repair, Trial, ranked, reason, search
from calipso_export.precision.run import answering
from calipso_export.precision.trials import Trials
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.steps.calibrate import Calibration
from calipso_export.steps.gather import Picture, evenly
from calipso_export.steps.lower import Attempt, Lowering, lowered_with
from calipso_export.steps.optimise import Optimised
from calipso_export.steps.verify import EagerAnswers
from calipso_runtime.caching import cache_folder
from calipso_runtime.graph_file import MODEL_FILE, ORT_MODEL_FILE
from calipso_runtime.parity import Answers, Gates, Parity, compare

_MOST_PICTURES, _MOST_COMPARED, _BATCH = 32, 8, 4
_MOST_LISTED, _MOST_NAMED = 10, 5


class Repairer:
    """Searches within the export's budget; each repair adds to what was pinned before.

    Attributes:
        record: of the last search, None before the first.
    """

    def __init__(self, made: Made, precision: Precision, progress: Progress) -> None:
        self._made, self._precision, self._progress = made, precision, progress
        self._left = made[ExportConfig].repair_minutes * 60
        self._pinned: dict[str, str] = {}
        self._before: dict[str, LayerError] = {}
        self._after: dict[str, LayerError] = {}
        self.record: Repair | None = None
        self._worst: list[LayerError] = []

    def can_help(self) -> bool:
        """Whether there is something to pin, and time left."""
        lowers = self._precision.quantised is not None or self._precision.rest != ir.DataType.FLOAT
        return lowers and self._left > 0 and (self.record is None or self.record.succeeded)

    def repair(self) -> dict[str, str]:
        """What has to be pinned, with the reasons; empty where the search did not succeed."""
        started = time.monotonic()
        pictures = self._pictures()
        images = np.stack([self._image(picture) for picture in pictures])
        table = self._table(images[:_MOST_COMPARED])
        rows = {row.node: row for row in table}
        graphs = self._made[Lowering].graphs
        candidates = [row.node for row in table if row.kind in ("float16", "bfloat16") or row.node in graphs.quantised]
        model = self._made[Optimised].portable
        readers = {
            str(node.name): [str(use.node.name) for output in node.outputs for use in output.uses()]
            for node in model.graph
        }
        trials = self._trials(pictures, images)
        order, surely = ranked(table, readers, candidates)
        self._worst = [rows[name] for name in order[:_MOST_LISTED] if name in rows]
        found, self.record = search(
            order,
            surely=surely,
            attempt=lambda nodes: self._remembered(trials, nodes, pictures, images),
            seconds=self._left - (time.monotonic() - started),
            progress=self._progress,
        )
        self._left -= time.monotonic() - started
        if not self.record.succeeded:
            return {}
        new = {name: reason(rows[name]) for name in sorted(found)}
        self._before.update({name: rows[name] for name in new})
        self._pinned |= new
        self.record = dataclasses.replace(self.record, pinned=dict(self._pinned))
        repaired = self._lowered(frozenset(self._pinned))
        after = layer_errors(model, repaired.portable, _split(images[:_MOST_COMPARED]))
        self._after = {row.node: row for row in after}
        return dict(self._pinned)

    def failure(self) -> list[str]:
        """After a search without success: a sentence that names the worst layers."""
        if self.record is None or self.record.succeeded:
            return []
        layers = ", ".join(f"{row.node} ({row.own_error:.1e})" for row in self._worst[:_MOST_NAMED])
        searched = f"no repair after {self.record.trials} trials ({self.record.ended})"
        return [f"{searched}; the worst layers, by the error that each adds alone: {layers}"]

    def as_json(self) -> dict[str, Any]:
        """For `parity.json` and the report."""
        record = self.record
        if record is None:
            return {}
        return {
            "succeeded": record.succeeded,
            "trials": record.trials,
            "ended": record.ended,
            "pinned": [
                {
                    "node": name,
                    "reason": why,
                    "error_before": self._before[name].error,
                    "error_after": self._after[name].error,
                }
                for name, why in record.pinned.items()
            ],
            "worst_layers": [
                {"node": row.node, "own_error": row.own_error, "error": row.error, "peak": row.peak}
                for row in self._worst
            ],
        }

    def _table(self, images: npt.NDArray[np.float32]) -> list[LayerError]:
        self._progress(f"comparing layers in {self._precision.name}", 0, 1)
        table = layer_errors(self._made[Optimised].portable, self._made[Lowering].graphs.portable, _split(images))
        self._progress(f"comparing layers in {self._precision.name}", 1, 1)
        return table

    def _lowered(self, nodes: frozenset[str]) -> Lowered:
        pinned = {**self._pinned, **dict.fromkeys(nodes, "tried")}
        return lowered_with(self._made, Attempt(precision=self._precision, pinned=pinned))[0]

    def _trials(self, pictures: Sequence[tuple[int, Picture]], images: npt.NDArray[np.float32]) -> Trials:
        """Of this graph, precision, gates and pictures, in this run or an interrupted one."""
        config = self._made[ExportConfig]
        eager = self._made[EagerAnswers].answers.of([index for index, _ in pictures])
        settings = [
            self._precision.name,
            config.io_dtype,
            config.full_range,
            config.pin,
            sorted(self._pinned),
            self._failing(),
            dataclasses.asdict(self._gates(pictures)),
            sorted(self._made[Calibration].ranges.get(self._precision.name, {}).items()),
            [picture.label for _, picture in pictures],
        ]
        about = [repr(settings).encode(), images.tobytes(), eager.logits.tobytes()]
        key = digest(self._made[Optimised].portable, about)
        return Trials((config.feature_cache or cache_folder()) / "repair" / f"{key}.jsonl")

    def _remembered(
        self,
        trials: Trials,
        nodes: frozenset[str],
        pictures: Sequence[tuple[int, Picture]],
        images: npt.NDArray[np.float32],
    ) -> Trial:
        if (trial := trials.find(nodes)) is None:
            trial = self._try(nodes, pictures, images)
            trials.add(nodes, trial)
        return trial

    def _try(
        self, nodes: frozenset[str], pictures: Sequence[tuple[int, Picture]], images: npt.NDArray[np.float32]
    ) -> Trial:
        graphs = self._lowered(nodes)
        eager = self._made[EagerAnswers].answers.of([index for index, _ in pictures])
        everything = list(range(len(pictures)))
        shipped = {}
        for name, graph in ((MODEL_FILE, graphs.portable), (ORT_MODEL_FILE, graphs.ort)):
            if name not in self._failing():
                continue
            with answering(graph) as answer:
                parts = []
                for some in _split(images):
                    parts.append(answer(some))
                    if not np.isfinite(parts[-1]["logits"]).all():
                        # Most trials end here, after the first batch.
                        return Trial(passed=False, error=math.inf)
            outputs = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            shipped[name] = everything, Answers(outputs=outputs)
        parity = compare(
            [picture.name for _, picture in pictures],
            eager,
            shipped,
            truth=[picture.label for _, picture in pictures],
            gates=self._gates(pictures),
            about={},
            checks={},
            edge_cases=len(pictures) - self._real(pictures),
        )
        return Trial(passed=not parity.failures, error=parity.document["worst"]["relative_logit_error"])

    def _failing(self) -> list[str]:
        """The graphs that did not pass: the search asks only these; what it finds is verified on both."""
        failures = self._made[Parity].failures
        found = [name for name in (MODEL_FILE, ORT_MODEL_FILE) if any(f"batch {name}," in each for each in failures)]
        # An accuracy gate names no graph.
        return found or [MODEL_FILE, ORT_MODEL_FILE]

    def _gates(self, pictures: Sequence[tuple[int, Picture]]) -> Gates:
        """The gates for some of the pictures: as many flips may be left as among all, not as large a share."""
        gates = gates_for(self._made[ExportConfig], self._precision)
        everything = self._made[EagerAnswers].everything
        known = sum(picture.label is not None for picture in everything)
        labelled = sum(picture.label is not None for _, picture in pictures)
        given, real = self._made[EagerAnswers].given, self._real(pictures)

        def share(least: float, of: int, among: int) -> float:
            return max(0.0, 1.0 - (1.0 - least) * of / among)

        drop = gates.max_accuracy_drop
        return dataclasses.replace(
            gates,
            min_top1_agreement=share(gates.min_top1_agreement, len(everything), len(pictures)),
            # Of edge cases only where there is nothing else, as in `compare`.
            min_same_top1=share(gates.min_same_top1, given or len(everything), real or len(pictures)),
            max_accuracy_drop=None if drop is None or not labelled else min(1.0, drop * known / labelled),
        )

    def _real(self, pictures: Sequence[tuple[int, Picture]]) -> int:
        """How many of them are no edge cases. Asked only once eager has answered: a repairer is made before."""
        given = self._made[EagerAnswers].given
        return sum(index < given for index, _ in pictures)

    def _pictures(self) -> list[tuple[int, Picture]]:
        """Those that went worst, and an even sample of the others."""
        everything = self._made[EagerAnswers].everything
        by_name = {picture.name: index for index, picture in enumerate(everything)}
        bad: dict[int, None] = {}
        for measured in self._made[Parity].document["by_batch"].values():
            names = [flip["picture"] for flip in measured["flips"]]
            names += [measured["relative_logit_error"]["worst_picture"]]
            names += [measured["embedding_cosine"]["worst_picture"]] if "embedding_cosine" in measured else []
            bad.update(dict.fromkeys(by_name[name] for name in names))
        chosen = list(bad)[: _MOST_PICTURES // 2]
        others = [index for index in evenly(len(everything), _MOST_PICTURES) if index not in chosen]
        # In their order: edge cases are last.
        return [(index, everything[index]) for index in sorted([*chosen, *others][:_MOST_PICTURES])]

    def _image(self, picture: tuple[int, Picture]) -> npt.NDArray[np.float32]:
        return self._made[LoadedModel].front_end.given(picture[1].content, name=picture[1].name)


def _split(images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
