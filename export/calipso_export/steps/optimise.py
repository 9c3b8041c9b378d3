"""Optimise: exact forms of the same computation, in the graph that every precision is made of."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from calipso_export.config import ExportConfig
from calipso_export.forms import EIGHT_BIT_FORMS, PORTABLE_FORMS, Form, apply_forms
from calipso_export.precision import candidates
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.steps.trace import Traced
from calipso_export.tidy import tidy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimised:
    """The fp32 graph with standard operators only.

    Attributes:
        portable: the graph.
        forms: how many places each form changed.
    """

    portable: ir.Model
    forms: Mapping[str, int]


class Optimise:
    """Apply the forms; what they keep is proved by the verification of the written files."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, Traced)
    ensures: ClassVar[tuple[type, ...]] = (Optimised,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        progress("optimising the graph", 0, 1)
        in_eight_bits = any(precision.activations for precision in candidates(made[ExportConfig]))
        forms = {**PORTABLE_FORMS, **(EIGHT_BIT_FORMS if in_eight_bits else {})}
        made.add(optimise(made[Traced].graph, portable=forms))
        progress("optimising the graph", 1, 1)


def optimise(traced: ir.Model, *, portable: Mapping[str, Form] = PORTABLE_FORMS) -> Optimised:
    """Apply forms to a traced graph, which is changed.

    Args:
        traced: the graph.
        portable: forms, by name.
    """
    counts = apply_forms(traced.graph, portable)
    tidy(traced)
    return Optimised(portable=traced, forms=counts)
