"""Makes the graphs of a precision out of the fp32 ones: the portable graph, and ONNX Runtime's for CPUs."""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calipso_export.forms import HALF_FORMS, ORT_FORMS, Form, apply_forms
from calipso_export.forms.matching import ORT_DOMAIN, add_constant, constant, replace_by, reshape, use_ort_domain
from calipso_export.precision import Precision
from calipso_export.precision.half import rounded, to_half, type_io
from calipso_export.precision.integer_products import fuse_integer_products, is_product
from calipso_export.precision.islands import WORK_OPERATORS, in_tower
from calipso_export.precision.quantised import (
    INT8_PAIR_SAFE,
    Quantised,
    out_axis,
    quantisable,
    quantise,
    quantised_weight,
)
from calipso_export.tidy import tidy
from calipso_runtime.errors import UsageError
from calipso_runtime.pair_sums import MULTIPLIED_IN_INT8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
    """The graphs of one precision.

    Attributes:
        portable: for every engine.
        ort: for ONNX Runtime on CPUs.
        quantised: names of the nodes that multiply in eight bits, or whose weights have them.
        kept: by node, why it stays in fp32 though it is no island.
        half_forms: how many places each form changed in the portable graph since it has 16 bits.
        ort_forms: how many places each form changed in ONNX Runtime's graph.
    """

    portable: ir.Model
    ort: ir.Model
    quantised: tuple[str, ...]
    kept: Mapping[str, str]
    half_forms: Mapping[str, int]
    ort_forms: Mapping[str, int]


def lower(
    model: ir.Model,
    precision: Precision,
    *,
    ranges: Mapping[str, float] | None,
    pinned: Collection[str] = (),
    io: ir.DataType = ir.DataType.FLOAT,
    full_range: bool = False,
    ort_forms: Mapping[str, Form] = ORT_FORMS,
) -> Lowered:
    """Make both graphs.

    Args:
        model: the fp32 graph with the portable forms; left as it is.
        precision: what to make of it.
        ranges: largest magnitudes of activations, by name of the value, where the precision needs them.
        pinned: names of nodes that stay in fp32.
        io: type of the inputs and outputs.
        full_range: use all eight bits of int8 weights, though pairs of their products can overflow 16 bits.
        ort_forms: forms of ONNX Runtime's graph.

    Raises:
        UsageError: the opset cannot express the precision for most of this model.
    """
    opset = model.opset_imports[""]
    form = precision.quantised
    if precision.name in MULTIPLIED_IN_INT8 and not full_range:
        form = INT8_PAIR_SAFE
    portable = model.clone()
    quantised: list[str] = []
    if form is not None:
        ranges = ranges if precision.activations else None
        quantised = quantise(portable.graph, form, ranges=ranges, pinned=pinned)
    kept: dict[str, str] = {}
    half_forms: dict[str, int] = {}
    if precision.rest != ir.DataType.FLOAT:
        kept = to_half(portable.graph, precision.rest, opset=opset, pinned=pinned)
        half_forms = apply_forms(
            portable.graph, {name: form for name, (since, form) in HALF_FORMS.items() if since <= opset}
        )
        _refuse_mostly_fp32(precision, portable, kept, opset)
    type_io(portable.graph, io)
    ort = model.clone()
    plan = _Plan(portable=portable, form=form, ranges=ranges, pinned=pinned, forms=ort_forms)
    counts = _CPU[precision.cpu](ort, plan)
    type_io(ort.graph, io)
    tidy(portable)
    tidy(ort)
    return Lowered(
        portable=portable, ort=ort, quantised=tuple(quantised), kept=kept, half_forms=half_forms, ort_forms=counts
    )


def _refuse_mostly_fp32(precision: Precision, model: ir.Model, kept: Mapping[str, str], opset: int) -> None:
    """An operator that lacks the type at this opset, in more than the first layer, is no such graph at all."""
    work = [str(node.name) for node in model.graph if node.op_type in WORK_OPERATORS and in_tower(node)]
    lacking = [kept[name] for name in work if kept.get(name, "").find(" takes no ") > 0]
    if 2 * len(lacking) > len(work):
        message = (
            f"precision {precision.name} is not possible for this model in opset {opset}: {lacking[0]}, and "
            f"{len(lacking)} of its {len(work)} products are such. Give a newer --opset, or another --precision"
        )
        raise UsageError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What ONNX Runtime's graph is made by; see `lower`."""

    portable: ir.Model
    form: Quantised | None
    ranges: Mapping[str, float] | None
    pinned: Collection[str]
    forms: Mapping[str, Form]


def _stored(ort: ir.Model, plan: _Plan) -> dict[str, int]:
    """fp32 arithmetic over the portable graph's weights, which the engine converts once when it loads."""
    return _restore_all(ort, _stored_weights(ort, plan), plan)


def _int8(ort: ir.Model, plan: _Plan) -> dict[str, int]:
    """Eight-bit matrix products, convolutions of all channels at once among them; everything else in fp32."""
    stored = _stored_weights(ort, plan)
    if plan.form is not None:
        others = {str(node.name) for node in quantisable(ort.graph) if not is_product(node)}
        quantise(ort.graph, plan.form, ranges=plan.ranges, pinned={*plan.pinned, *others})
    counts = _restore_all(ort, stored, plan)
    # After the forms, which look for MatMul.
    fuse_integer_products(ort.graph)
    return counts


def _dynamic(ort: ir.Model, plan: _Plan) -> dict[str, int]:
    """ONNX Runtime's own product of fp32 by int8, which takes the range of each batch's activations."""
    graph, stored_weights = ort.graph, _stored_weights(ort, plan)
    for node in tuple(quantisable(graph)):
        weight = node.inputs[1]
        if plan.form is None or weight is None or node.op_type != "MatMul" or node.name in plan.pinned:
            continue
        stored, scale = quantised_weight(node, plan.form)
        inputs = [
            node.inputs[0],
            add_constant(graph, f"{weight.name}.int8", stored),
            add_constant(graph, f"{weight.name}.int8.scale", scale),
        ]
        product = ir.node("DynamicQuantizeMatMul", inputs, domain=ORT_DOMAIN, name=node.name)
        replace_by(graph, node.outputs[0], [product])
        use_ort_domain(graph)
    return _restore_all(ort, stored_weights, plan)


def _restore_all(ort: ir.Model, stored: Mapping[bytes, "_Stored"], plan: _Plan) -> dict[str, int]:
    """Apply the forms, and read what is still a weight in fp32 from where the portable graph stores it."""
    counts = apply_forms(ort.graph, plan.forms)
    for value in tuple(ort.graph.initializers.values()):
        array = constant(value)
        if array is None or array.dtype != np.float32 or not value.uses():
            continue
        if (found := stored.get(_digest(array))) is not None:
            _restore(ort.graph, value, array.shape, *found)
    return counts


_CPU: Mapping[str, Callable[[ir.Model, _Plan], dict[str, int]]] = {
    "stored": _stored,
    "int8": _int8,
    "dynamic": _dynamic,
}
_Stored = tuple[npt.NDArray[np.generic], npt.NDArray[np.float32] | None]


def _stored_weights(ort: ir.Model, plan: _Plan) -> dict[bytes, _Stored]:
    """By digest of an fp32 weight: how the portable graph stores it, and its scale along the right axis."""
    found: dict[bytes, _Stored] = {}
    for name, value in ort.graph.initializers.items():
        array = constant(value)
        for kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            if (
                array is not None
                and array.size > 1
                and f"{name}.{kind.name.lower()}" in plan.portable.graph.initializers
            ):
                found[_digest(array)] = rounded(array, kind), None
    if plan.form is not None:
        for node in quantisable(ort.graph):
            array = constant(node.inputs[1])
            if array is not None and node.name not in plan.pinned and plan.form.takes(node):
                stored, scale = quantised_weight(node, plan.form)
                shape = [1] * array.ndim
                shape[out_axis(node)] = -1
                found[_digest(array)] = stored, scale.reshape(shape)
    return found


def _restore(
    graph: ir.Graph,
    value: ir.Value,
    shape: tuple[int, ...],
    stored: npt.NDArray[np.generic],
    scale: npt.NDArray[np.float32] | None,
) -> None:
    """Put a cast, and a product with the scale, in a weight's place: constants, which the engine folds."""
    first = next(iter(graph))
    source = add_constant(graph, f"{value.name}.stored", stored)
    cast = ir.node("Cast", [source], {"to": ir.DataType.FLOAT.value})
    nodes = [cast]
    if scale is not None:
        factor = add_constant(graph, f"{value.name}.stored.scale", scale)
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor]))
    if shape != stored.shape:
        nodes.append(reshape(graph, nodes[-1].outputs[0], *shape))
    output = nodes[-1].outputs[0]
    output.shape, output.dtype = value.shape, ir.DataType.FLOAT
    for place, node in enumerate(nodes):
        node.name = f"restore {value.name}/{place}"
    graph.insert_before(first, nodes)
    value.replace_all_uses_with(output)
    if value.name is not None:
        del graph.initializers[value.name]


def _digest(array: npt.NDArray[np.generic]) -> bytes:
    return hashlib.sha256(np.asarray(array, order="C").reshape(-1).view(np.uint8).data).digest()
