"""Lower: the graphs in their number format, out of the fp32 one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import onnx_ir as ir

from calipso_export.config import ExportConfig
from calipso_export.precision import Precision
from calipso_export.precision.islands import layer_of
from calipso_export.precision.lower import Lowered, lower
from calipso_export.precision.quantised import is_pair_safe
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.steps.calibrate import Calibration
from calipso_export.steps.optimise import Optimised
from calipso_runtime.errors import UsageError
from calipso_runtime.pair_sums import FORMS_WITHOUT_VNNI, MULTIPLIED_IN_INT8

_IO = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """What is tried next.

    Attributes:
        precision: the number format.
        pinned: by node that stays in fp32, why.
    """

    precision: Precision
    pinned: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowering:
    """Graphs of one precision, and how they came about."""

    graphs: Lowered
    precision: Precision
    pinned: Mapping[str, str]
    io_dtype: str
    calibration: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        kept = {**self.graphs.kept, **self.pinned}
        pair_safe = is_pair_safe(self.graphs.portable.graph)
        overflows = self.precision.name in MULTIPLIED_IN_INT8 and not pair_safe
        return {
            "io_dtype": self.io_dtype,
            "quantised": len(self.graphs.quantised),
            "pair_safe": pair_safe,
            "without_vnni": FORMS_WITHOUT_VNNI if overflows else {},
            "kept_in_fp32": [{"node": name, "why": why} for name, why in sorted(kept.items())],
            "calibration": self.calibration,
        }


class Lower:
    """Make the graphs that are attempted."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, Optimised, Calibration, Attempt)
    ensures: ClassVar[tuple[type, ...]] = (Lowering,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, precision = made[ExportConfig], made[Attempt].precision
        what = f"making the {precision.name} graph"
        progress(what, 0, 1)
        graphs, pinned = lowered_with(made, made[Attempt])
        document = made[Calibration].document
        made.add(
            Lowering(
                graphs=graphs,
                precision=precision,
                pinned=pinned,
                io_dtype=config.io_dtype,
                calibration=_own(document, precision.name) if precision.activations else {},
            )
        )
        progress(what, 1, 1)


def lowered_with(made: Made, attempt: Attempt) -> tuple[Lowered, dict[str, str]]:
    """The graphs of an attempt, and every node that is pinned in them, with the reason."""
    config, model = made[ExportConfig], made[Optimised].portable
    pinned = {**asked_to_keep(model, config), **attempt.pinned}
    graphs = lower(
        model,
        attempt.precision,
        ranges=made[Calibration].ranges.get(attempt.precision.name),
        pinned=pinned,
        io=_IO[config.io_dtype],
        full_range=config.full_range,
    )
    return graphs, pinned


def asked_to_keep(model: ir.Model, config: ExportConfig) -> dict[str, str]:
    """The nodes that the configuration pins, by their own name, their layer's or one above it.

    Raises:
        UsageError: the graph has no such layer.
    """
    names = [str(node.name) for node in model.graph]
    found = {}
    for wanted in config.pin:
        own = [name for name in names if name == wanted or f"{layer_of(name)}.".startswith(f"{wanted}.")]
        if not own:
            layers = sorted({layer_of(name) for name in names})
            message = f"pin names {wanted!r}, and the graph has no such node or layer. Layers: {', '.join(layers)}"
            raise UsageError(message)
        found.update(dict.fromkeys(own, "asked for"))
    return found


def _own(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**document, "methods": document["methods"][name]}
