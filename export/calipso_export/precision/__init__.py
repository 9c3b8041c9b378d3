"""Number formats of a shipped graph: one line each in a table, made by passes over the fp32 graph.

Since TensorRT 11 precision lives in the graph and nowhere else: every tensor has the type it is
computed in, and conversions are Cast, QuantizeLinear and DequantizeLinear nodes that anyone can read.
"""

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from calipso_export.config import ExportConfig
from calipso_export.precision.quantised import FP8, INT8, Quantised
from calipso_runtime import devices
from calipso_runtime.errors import UsageError
from calipso_runtime.parity import Gates
from calipso_runtime.pixel_input import OP

__all__ = ["AUTO", "ORDER", "PRECISIONS", "Precision", "candidates", "gates_for", "precision_named"]

AUTO = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """One number format.

    Attributes:
        name: on the command line and in the manifest.
        rest: what everything is computed in that is neither quantised nor kept in fp32.
        quantised: how the weights of the blocks are stored and multiplied, None for not at all.
        activations: whether the inputs of those products are quantised too, in the portable graph.
        cpu: how ONNX Runtime's graph for CPUs computes: "stored" takes the same weights in fp32 arithmetic, "int8"
            multiplies in eight bits, "dynamic" too and measures the ranges at run time.
        min_opset: the first ONNX opset that can express it.
        gates: what the shipped file has to reach, unless told otherwise.
    """

    name: str
    rest: ir.DataType = ir.DataType.FLOAT
    quantised: Quantised | None = None
    activations: bool = False
    cpu: str = "stored"
    min_opset: int = 18
    gates: Gates = dataclasses.field(default_factory=Gates)


# A rounding of u (2^-11 and 2^-9) on every tensor of some 100 layers ends at about 10 u on the logits; the gates
# leave as much again. They bound what counts as a flip inside the numerical margin (docs/precision.md).
_FP16_GATES = Gates(
    max_relative_logit_error=1e-2, min_embedding_cosine=0.9995, min_top1_agreement=1.0, min_same_top1=0.995
)
_BF16_GATES = Gates(
    max_relative_logit_error=5e-2, min_embedding_cosine=0.998, min_top1_agreement=1.0, min_same_top1=0.995
)
# Eight bits: answers differ, so what counts is how many and whether they are worse.
_8_BIT_GATES = Gates(
    max_relative_logit_error=0.25,
    min_embedding_cosine=0.95,
    min_top1_agreement=0.0,
    min_same_top1=0.99,
    max_accuracy_drop=0.005,
)
# Of a graph that resizes by an operator: one value in ten thousand is a level off, which is as much as fp16 rounds.
_RESIZE_ERROR = 1e-2
_TABLE = (
    Precision(name="fp32"),
    Precision(name="fp16", rest=ir.DataType.FLOAT16, gates=_FP16_GATES),
    Precision(name="bf16", rest=ir.DataType.BFLOAT16, gates=_BF16_GATES),
    Precision(name="int8", quantised=INT8, activations=True, cpu="int8", gates=_8_BIT_GATES),
    Precision(name="int8-dynamic", quantised=INT8, cpu="dynamic", gates=_8_BIT_GATES),
    Precision(name="int8-weights", quantised=INT8, gates=_8_BIT_GATES),
    Precision(
        name="int8-fp16",
        rest=ir.DataType.FLOAT16,
        quantised=INT8,
        activations=True,
        cpu="int8",
        min_opset=20,
        gates=_8_BIT_GATES,
    ),
    Precision(name="fp8", rest=ir.DataType.FLOAT16, quantised=FP8, activations=True, min_opset=20, gates=_8_BIT_GATES),
)
PRECISIONS: Mapping[str, Precision] = {precision.name: precision for precision in _TABLE}
# What `auto` tries for a target, fastest first. On a CPU half precision computes in fp32: it only halves the file.
ORDER: Mapping[str, tuple[str, ...]] = {
    "cpu": ("int8", "int8-dynamic", "fp16", "fp32"),
    "gpu": ("fp8", "int8-fp16", "fp16", "bf16", "fp32"),
}


def precision_named(name: str, *, opset: int) -> Precision:
    """Look a precision up.

    Raises:
        UsageError: there is none of this name, or the opset cannot express it.
    """
    if name not in PRECISIONS:
        message = f"precision is {name!r}: expected one of {', '.join((*PRECISIONS, AUTO))}"
        raise UsageError(message)
    precision = PRECISIONS[name]
    if opset < precision.min_opset:
        message = f"precision {name} cannot be expressed in opset {opset}: give --opset {precision.min_opset} or newer"
        raise UsageError(message)
    return precision


def candidates(config: ExportConfig) -> list[Precision]:
    """What an export will try, in this order: the precision asked for, or for "auto" those of the target.

    Raises:
        UsageError: see `precision_named`.
    """
    if config.precision != AUTO:
        return [precision_named(config.precision, opset=config.opset)]
    target = config.target or ("cpu" if devices.cuda_driver().problem else "gpu")
    return [PRECISIONS[name] for name in ORDER[target] if PRECISIONS[name].min_opset <= config.opset]


def gates_for(config: ExportConfig, precision: Precision) -> Gates:
    """What a precision has to reach in an export: its own gates, with those that were set over them."""
    if isinstance(config.gates, Gates):
        return config.gates
    drop = {"max_accuracy_drop": config.max_drop / 100} if config.precision == AUTO else {}
    gates, taken = precision.gates, config.pixel_input
    if taken is not None and taken.resize == OP:
        error = max(gates.max_relative_logit_error, _RESIZE_ERROR)
        gates = dataclasses.replace(gates, max_relative_logit_error=error)
    return dataclasses.replace(gates, **{**drop, **config.gates})
