"""Calibrate: the ranges of activations, on real pictures, by the way of cutting them that loses least."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.calibration_pictures import CalibrationPictures
from calipso_export.config import ExportConfig
from calipso_export.models import LoadedModel
from calipso_export.precision import Precision, candidates
from calipso_export.precision.calibrate import collect, digest
from calipso_export.precision.lower import lower
from calipso_export.precision.ranges import METHODS
from calipso_export.precision.run import answering
from calipso_export.progress import Progress, batches, track
from calipso_export.step import Made
from calipso_export.steps.optimise import Optimised
from calipso_runtime.caching import cache_folder
from calipso_runtime.manifest import canonical
from calipso_runtime.parity import spread

# One picture in five is kept to choose the way of cutting on.
_ONE_IN = 5
_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Ranges of activations.

    Attributes:
        ranges: by precision: by name of a value, its largest magnitude.
        document: for the manifest: on what they were measured, and how the ways of cutting compared.
    """

    ranges: Mapping[str, Mapping[str, float]]
    document: Mapping[str, Any]


class Calibrate:
    """Measure, where one of the precisions that will be tried needs it."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel, CalibrationPictures, Optimised)
    ensures: ClassVar[tuple[type, ...]] = (Calibration,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, front_end = made[ExportConfig], made[LoadedModel].front_end
        needing = [each for each in candidates(config) if each.activations]
        if not needing:
            made.add(Calibration(ranges={}, document={}))
            return
        paths, source = made[CalibrationPictures].paths, made[CalibrationPictures].source
        model = made[Optimised].portable

        def batch_of(indices: Sequence[int]) -> npt.NDArray[np.float32]:
            return np.stack([front_end.given(paths[index], name=str(paths[index])) for index in indices])

        chosen_on = list(range(0, len(paths), _ONE_IN))
        measured_on = [index for index in range(len(paths)) if index % _ONE_IN]
        prepared = f"{made[LoadedModel].preprocess!r} {canonical(front_end.as_json())}"
        contents = (paths[index].read_bytes() for index in measured_on)
        key = digest(model, itertools.chain([prepared.encode()], contents))
        keep = (config.feature_cache or cache_folder()) / "calibration" / f"{key}.npz"
        histograms = collect(
            model,
            len(measured_on),
            lambda indices: batch_of([measured_on[index] for index in indices]),
            keep=keep,
            progress=progress,
        )
        cut = {name: {value: way(each) for value, each in histograms.items()} for name, way in METHODS.items()}
        ranges, compared = {}, {}
        held = [batch_of(some) for some in batches(chosen_on, _BATCH)]
        with answering(model) as answer:
            plain = [answer(some)["logits"] for some in track(held, "asking the fp32 graph", progress)]
        for precision in needing:
            errors = {
                way: _error(_eight_bit(model, precision, config, found), held, plain)
                for way, found in track(list(cut.items()), f"comparing ranges for {precision.name}", progress)
            }
            best = min(errors, key=lambda way: errors[way])
            ranges[precision.name] = cut[best]
            compared[precision.name] = {"chosen": best, "mean_relative_logit_error": errors}
        document = {
            "source": source,
            "pictures": len(measured_on),
            "chosen_on": len(chosen_on),
            "seed": config.seed,
            "methods": compared,
        }
        made.add(Calibration(ranges=ranges, document=document))


def _eight_bit(model: ir.Model, precision: Precision, config: ExportConfig, ranges: Mapping[str, float]) -> ir.Model:
    """The quantised graph with everything else in fp32: only the ranges are compared."""
    eight = dataclasses.replace(precision, rest=ir.DataType.FLOAT)
    return lower(model, eight, ranges=ranges, full_range=config.full_range, ort_forms={}).portable


def _error(model: ir.Model, held: Sequence[npt.NDArray[np.float32]], plain: Sequence[npt.NDArray[np.float32]]) -> float:
    """How far a graph's logits are off, of pictures that the ranges were not measured on."""
    with answering(model) as answer:
        errors = [
            np.abs(answer(some)["logits"] - logits).max(axis=1) / spread(logits)
            for some, logits in zip(held, plain, strict=True)
        ]
    return float(np.concatenate(errors).mean())
