"""Optimise: exact forms of the same computation, in the portable graph and in ones for single engines."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from calipso_export.forms import ORT_FORMS, PORTABLE_FORMS, Form, apply_forms
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.steps.trace import Traced, tidy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimised:
    """The graphs that will be written.

    Attributes:
        portable: standard operators only.
        ort: the same for ONNX Runtime on a CPU, with its own operators.
        forms: of each graph, how many places each form changed.
    """

    portable: ir.Model
    ort: ir.Model
    forms: Mapping[str, Mapping[str, int]]


class Optimise:
    """Apply the forms; what they keep is proved by the verification of the written files."""

    requires: ClassVar[tuple[type, ...]] = (Traced,)
    ensures: ClassVar[tuple[type, ...]] = (Optimised,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        progress("optimising the graph", 0, 1)
        made.add(optimise(made[Traced].graph))
        progress("optimising the graph", 1, 1)


def optimise(
    traced: ir.Model, *, portable: Mapping[str, Form] = PORTABLE_FORMS, ort: Mapping[str, Form] = ORT_FORMS
) -> Optimised:
    """Apply forms to a traced graph, which is changed, and to a copy of it.

    Args:
        traced: the graph.
        portable: forms of the portable graph, by name.
        ort: forms of ONNX Runtime's graph, by name, after the portable ones.
    """
    counts = {"portable": apply_forms(traced.graph, portable)}
    tidy(traced)
    specialised = traced.clone()
    counts["ort"] = apply_forms(specialised.graph, ort)
    tidy(specialised)
    return Optimised(portable=traced, ort=specialised, forms=counts)
