"""Exact rewritings of a traced graph: one file each, one line each in a table.

A form changes how something is computed, never what. Portable forms go into `model.onnx` and use
standard operators only. Specialised forms make a second graph for one engine, over the same weights.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from calipso_export.forms.attention_op import fuse_attention
from calipso_export.forms.attention_scale import fold_attention_scale
from calipso_export.forms.depthwise import depthwise_per_kernel
from calipso_export.forms.gelu_op import fuse_gelu
from calipso_export.forms.linear_as_conv import linear_as_conv
from calipso_export.forms.patches import patches_as_rows
from calipso_export.forms.separate_products import separate_products
from calipso_export.forms.separate_projections import separate_projections
from calipso_export.forms.standard_attention import FIRST_OPSET, standard_attention

__all__ = ["EIGHT_BIT_FORMS", "HALF_FORMS", "ORT_FORMS", "PORTABLE_FORMS", "Form", "apply_forms"]

# A form takes a graph, changes it in place, and says how many places it changed.
Form = Callable[[ir.Graph], int]

PORTABLE_FORMS: Mapping[str, Form] = {
    "attention scale in the query weights": fold_attention_scale,
}
# Of graphs that multiply in eight bits.
EIGHT_BIT_FORMS: Mapping[str, Form] = {"one product for each part of a split": separate_products}
# Of graphs with 16-bit tensors, once they have them, by the first opset that can express the form.
HALF_FORMS: Mapping[str, tuple[int, Form]] = {"attention as one operator": (FIRST_OPSET, standard_attention)}
# In this order: the attention and GELU are recognised before the products around them change.
ORT_FORMS: Mapping[str, Form] = {
    "fused attention": fuse_attention,
    "fused GELU": fuse_gelu,
    "depthwise convolutions that do not widen": depthwise_per_kernel,
    "patches as rows": patches_as_rows,
    "linear layers as 1x1 convolutions": linear_as_conv,
    "separate projections": separate_projections,
}


def apply_forms(graph: ir.Graph, forms: Mapping[str, Form]) -> dict[str, int]:
    """Apply every form in order; how many places each changed, by name."""
    return {name: form(graph) for name, form in forms.items()}
