"""Graphs of one operator each, over the operators, types and attributes that the rules of the lint speak of.

Types that ONNX does not allow for an operator are left out: the lint and the compiler are asked about valid graphs. The
exceptions are rules about graphs that `onnx.checker` lets through, such as two float types at one node.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import onnx
from lint_samples import BF16, BOOL, FP8, FP16, FP32, FP64, INT8, INT16, INT64, UINT8
from one_operator import OPSET, Graph, Value, c, computed, is_allowed, kind_name, x
from onnx import TensorProto, helper

INT32, INT4, FP8_WIDE = TensorProto.INT32, TensorProto.INT4, TensorProto.FLOAT8E5M2
TYPES = (FP32, FP16, BF16, FP64, FP8, INT4, INT8, INT16, INT32, INT64, UINT8, BOOL)
FLOATS = (FP32, FP16, BF16)
NUMBERS = (*FLOATS, INT32, INT64)
# From here on bf16 is allowed nearly everywhere, and the type int4.
NEWER = 22
NEWEST = 24


def graphs() -> dict[str, Graph]:
    """Every graph, by name."""
    found: dict[str, Graph] = {}
    for make in _MAKERS:
        for graph in make():
            if graph.valid and not is_allowed(graph):
                continue
            assert graph.name not in found, graph.name
            found[graph.name] = graph
    return found


# Operators that the lint says no parser has, with what makes them valid.
def lacking() -> Iterator[Graph]:
    image, vector, number = x(FP32, 2, 3, 8, 8), x(FP32, 6), c(INT64, [2])
    yield from (
        Graph(operator="AffineGrid", inputs=(x(FP32, 2, 2, 3), c(INT64, [2, 3, 4, 4]))),
        Graph(operator="Bernoulli", inputs=(vector,)),
        Graph(operator="BitShift", inputs=(x(UINT8, 4), x(UINT8, 4)), attributes={"direction": "LEFT"}),
        Graph(operator="Col2Im", inputs=(x(FP32, 1, 5, 5), c(INT64, [5, 5]), c(INT64, [1, 5]))),
        Graph(operator="CenterCropPad", inputs=(image, c(INT64, [2, 3, 4, 4]))),
        Graph(operator="Compress", inputs=(vector, x(BOOL, 6)), attributes={"axis": 0}),
        Graph(operator="DFT", inputs=(x(FP32, 1, 8, 1), c(INT64, 8))),
        Graph(operator="Det", inputs=(x(FP32, 2, 3, 3),)),
        Graph(operator="MaxRoiPool", inputs=(image, x(FP32, 2, 5)), attributes={"pooled_shape": [2, 2]}),
        Graph(
            operator="MaxUnpool",
            inputs=(x(FP32, 1, 1, 2, 2), x(INT64, 1, 1, 2, 2)),
            attributes={"kernel_shape": [2, 2]},
        ),
        Graph(
            operator="MelWeightMatrix", inputs=(c(INT64, 4), c(INT64, 8), c(INT64, 8000), c(FP32, 0.0), c(FP32, 4000.0))
        ),
        Graph(operator="Multinomial", inputs=(x(FP32, 2, 4),), attributes={"sample_size": 2}),
        Graph(operator="NegativeLogLikelihoodLoss", inputs=(x(FP32, 2, 4), x(INT64, 2))),
        Graph(operator="SoftmaxCrossEntropyLoss", inputs=(x(FP32, 2, 4), x(INT64, 2))),
        Graph(operator="SequenceConstruct", inputs=(vector, vector)),
        Graph(operator="SequenceEmpty", inputs=()),
        Graph(operator="SplitToSequence", inputs=(vector, number)),
        Graph(operator="Optional", inputs=(vector,)),
        Graph(operator="OptionalHasElement", inputs=(vector,)),
        Graph(
            operator="TfIdfVectorizer",
            inputs=(x(INT64, 6),),
            attributes={
                "max_gram_length": 1,
                "max_skip_count": 0,
                "min_gram_length": 1,
                "mode": "TF",
                "ngram_counts": [0],
                "ngram_indexes": [0, 1],
                "pool_int64s": [2, 3],
            },
        ),
        Graph(operator="Unique", inputs=(vector,)),
        Graph(operator="ImageDecoder", inputs=(x(UINT8, 64),)),
    )
    for operator, kind in itertools.product(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), (INT32, INT64, UINT8)):
        yield Graph(operator=operator, inputs=(x(kind, 4), x(kind, 4)))
    for kind in (INT32, INT64, UINT8):
        yield Graph(operator="BitwiseNot", inputs=(x(kind, 4),))


def integer_operators() -> Iterator[Graph]:
    a, w, scale, zero = x(INT8, 4, 4), c(INT8, np.ones((4, 4))), c(FP32, 0.5), c(INT8, 0)
    yield Graph(operator="MatMulInteger", inputs=(a, w))
    yield Graph(operator="ConvInteger", inputs=(x(UINT8, 1, 3, 8, 8), c(UINT8, np.ones((4, 3, 3, 3)))))
    yield Graph(operator="QLinearMatMul", inputs=(a, scale, zero, w, scale, zero, scale, zero))
    yield Graph(
        operator="QLinearConv",
        inputs=(x(INT8, 1, 3, 8, 8), scale, zero, c(INT8, np.ones((4, 3, 3, 3))), scale, zero, scale, zero),
    )
    yield Graph(operator="DynamicQuantizeLinear", inputs=(x(FP32, 4, 4),), outputs=3)


UNARY = (
    "Abs Acos Atan Ceil Clip Cos Dropout Elu Erf Exp Flatten Floor Gelu GlobalAveragePool GlobalMaxPool HardSigmoid "
    "HardSwish Identity IsNaN LeakyRelu Log LogSoftmax Mish Neg Not Reciprocal Relu Round Selu Shape Sigmoid Sign Sin "
    "Size Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu Transpose"
)
BINARY = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual MatMul Max Mean Min Mod Mul Or PRelu Pow Sub Sum Xor"
)
REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"


def elementwise() -> Iterator[Graph]:
    for operator, kind in itertools.product(UNARY.split(), TYPES):
        yield Graph(operator=operator, inputs=(x(kind, 2, 3, 4, 4),), opset=NEWER)
    for operator, kind in itertools.product(BINARY.split(), TYPES):
        fmod = {"fmod": 1} if operator == "Mod" and kind in (*FLOATS, FP64) else {}
        yield Graph(operator=operator, inputs=(x(kind, 4, 4), x(kind, 4, 4)), attributes=fmod, opset=NEWER)
    for kind in TYPES:
        yield Graph(operator="Where", inputs=(x(BOOL, 4, 4), x(kind, 4, 4), x(kind, 4, 4)), opset=NEWER)
        yield Graph(operator="Swish", inputs=(x(kind, 4, 4),), opset=NEWEST)


def mixed_floats() -> Iterator[Graph]:
    for operator, (one, other) in itertools.product(
        ("Add", "Sub", "Mul", "Div", "Min", "Max", "MatMul", "Gemm", "Where", "Concat"),
        ((FP32, FP16), (FP16, FP32), (FP16, BF16)),
    ):
        first = (x(BOOL, 4, 4),) if operator == "Where" else ()
        yield Graph(
            operator=operator,
            inputs=(*first, x(one, 4, 4), x(other, 4, 4)),
            attributes={"axis": 0} if operator == "Concat" else {},
            opset=NEWER,
            valid=False,
        )
    for one, other in ((FP32, FP16), (FP16, FP32)):
        yield Graph(
            operator="Conv", inputs=(x(one, 1, 3, 8, 8), c(other, np.ones((4, 3, 3, 3)))), opset=NEWER, valid=False
        )
    for scale in (FP16, FP32):
        constants = tuple(c(scale, np.ones(3)) for _ in range(4))
        yield Graph(operator="BatchNormalization", inputs=(x(FP16, 1, 3, 4, 4), *constants), opset=NEWER)
    for kind, exponent in itertools.product(NUMBERS, (*NUMBERS, INT8)):
        if kind != exponent:
            yield Graph(operator="Pow", inputs=(x(kind, 4), x(exponent, 4)), opset=NEWER)


def products() -> Iterator[Graph]:
    for kind in TYPES:
        weights = c(kind, np.ones((4, 3, 3, 3)))
        yield Graph(operator="Conv", inputs=(x(kind, 1, 3, 8, 8), weights), opset=NEWER)
        yield Graph(
            operator="Conv", inputs=(x(kind, 1, 3, 8, 8), x(kind, 4, 3, 3, 3)), opset=NEWER, case="computed weights"
        )
        yield Graph(operator="ConvTranspose", inputs=(x(kind, 1, 4, 8, 8), weights), opset=NEWER)
        yield Graph(operator="Gemm", inputs=(x(kind, 4, 4), c(kind, np.ones((4, 4))), c(kind, np.ones(4))), opset=NEWER)
        for equation in ("bij,bjk->bik", "bIj,bjk->bIk", "...j,jk->...k", "bij,bij->b", "bij->bji"):
            second = () if "," not in equation else (x(kind, 4, 4) if equation.startswith("...") else x(kind, 2, 4, 4),)
            yield Graph(
                operator="Einsum", inputs=(x(kind, 2, 4, 4), *second), attributes={"equation": equation}, opset=NEWER
            )
    for equation in ("ii->i", "ii->", "i,i", "ij,jk", "bij , bjk -> bik"):
        rank = len(equation.partition("->")[0].split(",")[0].strip())
        second = (x(FP32, *[4] * rank),) if "," in equation else ()
        yield Graph(operator="Einsum", inputs=(x(FP32, *[4] * rank), *second), attributes={"equation": equation})


def casts() -> Iterator[Graph]:
    for kind, to in itertools.product((*TYPES, FP8_WIDE), repeat=2):
        yield Graph(
            operator="Cast", inputs=(x(kind, 4, 4),), attributes={"to": to}, opset=NEWER, case=f"to {kind_name(to)}"
        )
    for kind, to in itertools.product((FP32, FP16, INT64, INT8, FP8, FP64), repeat=2):
        yield Graph(operator="CastLike", inputs=(x(kind, 4, 4), x(to, 2)), opset=NEWER)


def attention() -> Iterator[Graph]:
    def heads(kind: int, size: int, *, tokens: int = 16) -> Value:
        return x(kind, 2, 4, tokens, size)

    for kind, size in itertools.product(FLOATS, (8, 16, 44, 64, 72, 128, 256, 264, 512)):
        yield Graph(
            operator="Attention", inputs=tuple(heads(kind, size) for _ in range(3)), case=f"head {size}", opset=NEWEST
        )
    for kind in (FP32, FP16):
        q = heads(kind, 64)
        yield Graph(operator="Attention", inputs=(q, q, q), again={1: 0, 2: 0}, case="one tensor", opset=NEWEST)
        yield Graph(operator="Attention", inputs=(q, q, q), again={1: 0}, case="queries are keys", opset=NEWEST)
        yield Graph(operator="Attention", inputs=(q, q, q), again={2: 1}, case="keys are values", opset=NEWEST)
        yield Graph(operator="Attention", inputs=(q, q, q), again={2: 0}, case="queries are values", opset=NEWEST)
    q = heads(FP16, 64)
    yield Graph(operator="Attention", inputs=(q, q, q), outputs=3, case="3 outputs", opset=NEWEST)
    yield Graph(operator="Attention", inputs=(q, q, q, None, q, q), outputs=3, case="past", opset=NEWEST)
    yield Graph(operator="Attention", inputs=(q, q, q, x(FP16, 16, 16)), case="mask", opset=NEWEST)
    yield Graph(operator="Attention", inputs=(q, q, q, x(BOOL, 16, 16)), case="mask", opset=NEWEST)
    wide = x(FP16, 2, 16, 256)
    for attributes in (
        {"softcap": 50.0},
        {"softmax_precision": 1},
        {"qk_matmul_output_mode": 0},
        {"qk_matmul_output_mode": 1},
        {"is_causal": 1},
        {"scale": 0.1},
    ):
        yield Graph(operator="Attention", inputs=(q, q, q), attributes=attributes, opset=NEWEST)
    for number in (1, 2, 4):
        yield Graph(
            operator="Attention",
            inputs=(wide, wide, wide),
            attributes={"q_num_heads": number, "kv_num_heads": number},
            opset=NEWEST,
        )
    yield Graph(
        operator="Attention", inputs=(q, x(FP16, 2, 2, 16, 64), x(FP16, 2, 2, 16, 64)), case="groups", opset=NEWEST
    )


def newer_operators() -> Iterator[Graph]:
    for kind in FLOATS:
        yield Graph(operator="RMSNormalization", inputs=(x(kind, 4, 8), c(kind, np.ones(8))), opset=NEWEST)
        half = c(kind, np.ones((16, 32)))
        yield Graph(
            operator="RotaryEmbedding",
            inputs=(x(kind, 2, 4, 16, 64), half, half, x(INT64, 2, 16)),
            opset=NEWEST,
        )
        yield Graph(
            operator="TensorScatter", inputs=(x(kind, 2, 4, 16, 8), x(kind, 2, 4, 1, 8), x(INT64, 2)), opset=NEWEST
        )


def scatters() -> Iterator[Graph]:
    for kind, reduction in itertools.product((*NUMBERS, BOOL), (None, "none", "add", "mul", "min", "max")):
        attributes = {} if reduction is None else {"reduction": reduction}
        rows, data = x(INT64, 2, 4), x(kind, 4, 4)
        yield Graph(operator="ScatterElements", inputs=(data, rows, x(kind, 2, 4)), attributes=attributes)
        yield Graph(operator="ScatterND", inputs=(data, x(INT64, 2, 1), x(kind, 2, 4)), attributes=attributes)


IMAGE = x(FP32, 1, 3, 8, 8)
MODES = ("nearest", "linear", "cubic")


def resizes() -> Iterator[Graph]:
    scales, sizes = c(FP32, [1, 1, 2, 2]), c(INT64, [1, 3, 16, 16])
    coordinates = (
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
        "half_pixel_symmetric",
        "tf_crop_and_resize",
    )
    for mode, coordinate in itertools.product(MODES, coordinates):
        attributes = {"mode": mode, "coordinate_transformation_mode": coordinate}
        region = c(FP32, [0, 0, 0, 0, 1, 1, 1, 1]) if coordinate == "tf_crop_and_resize" else None
        opset = 18 if coordinate == "tf_half_pixel_for_nn" else OPSET
        yield Graph(operator="Resize", inputs=(IMAGE, region, scales), attributes=attributes, opset=opset)
    for mode, antialias in itertools.product(MODES, (0, 1)):
        yield Graph(operator="Resize", inputs=(IMAGE, None, scales), attributes={"mode": mode, "antialias": antialias})
    for policy in ("stretch", "not_larger", "not_smaller"):
        yield Graph(
            operator="Resize",
            inputs=(IMAGE, None, None, c(INT64, [16, 16])),
            attributes={"keep_aspect_ratio_policy": policy, "axes": [2, 3], "mode": "linear"},
        )
    for kind, mode in itertools.product(TYPES, ("nearest", "linear")):
        yield Graph(
            operator="Resize", inputs=(x(kind, 1, 3, 8, 8), None, scales), attributes={"mode": mode}, case="types"
        )
    yield Graph(operator="Resize", inputs=(IMAGE, None, None, sizes), case="sizes")
    yield Graph(operator="Resize", inputs=(IMAGE, None, computed(FP32, 4)), case="computed scales")
    yield Graph(operator="Resize", inputs=(IMAGE, None, None, x(INT64, 4)), case="computed sizes")
    yield Graph(operator="Resize", inputs=(x(FP32, "batch", 3, 8, 8), None, scales), case="dynamic batch")


def resizes_of_axes() -> Iterator[Graph]:
    for axes, mode in itertools.product(([0, 1, 2, 3], [1, 2, 3], [2, 3], [0, 1], [3, 2], [-1]), MODES):
        number = len(axes)
        for what, inputs in {
            "constant scales": (IMAGE, None, c(FP32, [2.0] * number)),
            "computed scales": (IMAGE, None, computed(FP32, number)),
            "constant sizes": (IMAGE, None, None, c(INT64, [16] * number)),
            "computed sizes": (IMAGE, None, None, x(INT64, number)),
        }.items():
            yield Graph(operator="Resize", inputs=inputs, attributes={"axes": axes, "mode": mode}, case=what)
    several = x(FP32, "batch", 3, 8, 8)
    for axes, mode in itertools.product(([0, 1, 2, 3], [1, 2, 3], [2, 3], [3, 2], [-1]), MODES):
        number = len(axes)
        for what, inputs in {
            "constant scales": (several, None, c(FP32, [1.0] * (number - 1) + [2.0])),
            "constant sizes": (several, None, None, c(INT64, ([2, 3, 8, 16] if number == 4 else [3, 8, 16])[-number:])),
            "computed sizes": (several, None, None, x(INT64, number)),
        }.items():
            yield Graph(
                operator="Resize", inputs=inputs, attributes={"axes": axes, "mode": mode}, case=f"{what}, dynamic"
            )


def topk() -> Iterator[Graph]:
    for kind in TYPES:
        yield Graph(operator="TopK", inputs=(x(kind, 2, 64), c(INT64, [3])), outputs=2)
    for order, largest in itertools.product((0, 1), (0, 1)):
        attributes = {"sorted": order, "largest": largest}
        yield Graph(operator="TopK", inputs=(x(FP32, 2, 64), c(INT64, [3])), attributes=attributes, outputs=2)
    for kept in (3839, 3840, 3841, 5000):
        yield Graph(operator="TopK", inputs=(x(FP32, 2, 8192), c(INT64, [kept])), case=f"k {kept}", outputs=2)
    yield Graph(operator="TopK", inputs=(x(FP32, 2, 64), x(INT64, 1)), case="computed", outputs=2)


def reductions() -> Iterator[Graph]:
    for name, kind in itertools.product(REDUCTIONS.split(), TYPES):
        yield Graph(operator=f"Reduce{name}", inputs=(x(kind, 2, 3, 4), c(INT64, [1])))
    for name in REDUCTIONS.split():
        yield Graph(operator=f"Reduce{name}", inputs=(x(FP32, 2, 3, 4), x(INT64, 1)), case="computed axes")
        yield Graph(operator=f"Reduce{name}", inputs=(x(FP32, 2, 3, 4),), case="all axes")
        old = 12 if name == "Sum" else 17
        yield Graph(operator=f"Reduce{name}", inputs=(x(FP32, 2, 3, 4),), attributes={"axes": [1]}, opset=old)
    yield Graph(operator="ReduceSum", inputs=(x(FP32, 2, 3),), attributes={"noop_with_empty_axes": 1})
    for operator, kind in itertools.product(("ArgMax", "ArgMin"), NUMBERS):
        yield Graph(operator=operator, inputs=(x(kind, 2, 64),), attributes={"axis": 1})
    yield Graph(operator="ArgMax", inputs=(x(FP32, 2, 64),), attributes={"axis": 1, "select_last_index": 1})


def shapes() -> Iterator[Graph]:
    for kind in TYPES:
        yield Graph(operator="Squeeze", inputs=(x(kind, 1, 4), c(INT64, [0])), opset=NEWER)
        yield Graph(operator="Unsqueeze", inputs=(x(kind, 1, 4), c(INT64, [0])), opset=NEWER)
        yield Graph(operator="Reshape", inputs=(x(kind, 2, 4), c(INT64, [8])), opset=NEWER)
        yield Graph(operator="Expand", inputs=(x(kind, 1, 4), c(INT64, [3, 4])), opset=NEWER)
        yield Graph(operator="Tile", inputs=(x(kind, 1, 4), c(INT64, [3, 1])), opset=NEWER)
        yield Graph(operator="Gather", inputs=(x(kind, 4, 4), x(INT64, 2)), opset=NEWER)
        yield Graph(operator="Concat", inputs=(x(kind, 4, 4), x(kind, 2, 4)), attributes={"axis": 0}, opset=NEWER)
        yield Graph(operator="Split", inputs=(x(kind, 4, 4), c(INT64, [1, 3])), outputs=2, opset=NEWER)
        yield Graph(operator="Slice", inputs=(x(kind, 4, 4), c(INT64, [1]), c(INT64, [3]), c(INT64, [0])), opset=NEWER)
    for operator in ("Squeeze", "Unsqueeze"):
        yield Graph(operator=operator, inputs=(x(FP32, 1, 4), x(INT64, 1)), case="computed axes")
        yield Graph(operator=operator, inputs=(x(FP32, 1, 4),), attributes={"axes": [0]}, opset=12)
    yield Graph(operator="Squeeze", inputs=(x(FP32, 1, 4),), case="no axes")
    yield Graph(operator="Squeeze", inputs=(x(FP32, "batch", 1),), case="no axes, dynamic")
    yield Graph(operator="Squeeze", inputs=(x(FP32, "batch", 1), c(INT64, [1])), case="dynamic")
    index = x(INT64, 1)
    yield Graph(operator="Slice", inputs=(x(FP32, 4, 4), index, index, c(INT64, [0])), case="computed")
    yield Graph(operator="Slice", inputs=(x(FP32, 4, 4), index, index, index), case="computed axes")
    yield Graph(operator="Reshape", inputs=(x(FP32, 1, 1), x(INT64, 1)), case="computed")
    yield Graph(operator="Expand", inputs=(x(FP32, 1, 4), x(INT64, 2)), case="computed")


def pads() -> Iterator[Graph]:
    for kind, mode in itertools.product(NUMBERS, ("constant", "reflect", "edge", "wrap")):
        yield Graph(
            operator="Pad", inputs=(x(kind, 1, 3, 8, 8), c(INT64, [0, 0, 1, 1, 0, 0, 1, 1])), attributes={"mode": mode}
        )
    pads, axes = c(INT64, [1, 1]), c(INT64, [2])
    yield Graph(operator="Pad", inputs=(x(FP32, 1, 3, 8), pads, None, axes), case="axes")
    yield Graph(operator="Pad", inputs=(x(FP32, 1, 3, 8), pads, None, x(INT64, 1)), case="computed axes")
    yield Graph(operator="Pad", inputs=(x(FP32, 1, 3, 8), x(INT64, 6)), case="computed pads")
    yield Graph(operator="Pad", inputs=(x(FP32, 1, 3, 8), pads, c(FP32, 2.0), axes), case="value")


def one_hots() -> Iterator[Graph]:
    for indices, values in itertools.product((INT32, INT64, FP32), NUMBERS):
        yield Graph(operator="OneHot", inputs=(x(indices, 4), c(INT64, 3), c(values, [0, 1])))
    yield Graph(operator="OneHot", inputs=(x(INT64, 4), x(INT64), c(FP32, [0, 1])), case="computed depth")
    yield Graph(operator="OneHot", inputs=(x(INT64, 4), c(INT64, 3), x(FP32, 2)), case="computed values")


def normalisations() -> Iterator[Graph]:
    for kind, count in itertools.product((*FLOATS, FP64), (1, 2, 3)):
        yield Graph(
            operator="LayerNormalization",
            inputs=(x(kind, 2, 3, 8), c(kind, np.ones(8)), c(kind, np.ones(8))),
            outputs=count,
            case=f"{count} outputs",
        )
    for kind, training in itertools.product(FLOATS, (0, 1)):
        constants = tuple(c(kind, np.ones(3)) for _ in range(4))
        yield Graph(
            operator="BatchNormalization",
            inputs=(x(kind, 2, 3, 4, 4), *constants),
            attributes={"training_mode": training},
            outputs=3 if training else 1,
        )
    for kind in FLOATS:
        yield Graph(
            operator="InstanceNormalization", inputs=(x(kind, 2, 3, 4, 4), *(c(kind, np.ones(3)),) * 2), opset=NEWER
        )
        yield Graph(
            operator="GroupNormalization",
            inputs=(x(kind, 2, 4, 4, 4), *(c(kind, np.ones(4)),) * 2),
            attributes={"num_groups": 2},
            opset=NEWER,
        )
        ratio = c(FP32, 0.5)
        for what, mode in {"false": c(BOOL, False), "true": c(BOOL, True), "computed": x(BOOL)}.items():
            yield Graph(operator="Dropout", inputs=(x(kind, 4, 4), ratio, mode), case=f"training {what}", opset=NEWER)
    yield Graph(operator="Dropout", inputs=(x(FP32, 4, 4),), outputs=2, case="with its mask")


def pools() -> Iterator[Graph]:
    for operator, kind in itertools.product(("AveragePool", "LpPool", "MaxPool"), TYPES):
        yield Graph(operator=operator, inputs=(x(kind, 1, 3, 8, 8),), attributes={"kernel_shape": [2, 2]}, opset=NEWER)
    for operator, dilations in itertools.product(("AveragePool", "LpPool", "MaxPool"), ([1, 1], [2, 2], [1, 2])):
        attributes = {"kernel_shape": [2, 2], "dilations": dilations}
        yield Graph(operator=operator, inputs=(x(FP32, 1, 3, 8, 8),), attributes=attributes)
    for operator, ceil in itertools.product(("AveragePool", "LpPool", "MaxPool"), (0, 1)):
        attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": ceil}
        yield Graph(operator=operator, inputs=(x(FP32, 1, 3, 8, 8),), attributes=attributes)
    yield Graph(operator="MaxPool", inputs=(x(FP32, 1, 3, 8, 8),), attributes={"kernel_shape": [2, 2]}, outputs=2)
    for include in (0, 1):
        attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": include}
        yield Graph(operator="AveragePool", inputs=(x(FP32, 1, 3, 8, 8),), attributes=attributes)


def quantisation() -> Iterator[Graph]:
    for real, stored in itertools.product(FLOATS, (INT8, FP8, UINT8, INT4, INT16, FP8_WIDE)):
        for zero in (0, 1):
            scale, point = c(real, 0.5), c(stored, zero)
            yield Graph(
                operator="QuantizeLinear", inputs=(x(real, 4, 4), scale, point), case=f"zero point {zero}", opset=NEWER
            )
            yield Graph(
                operator="DequantizeLinear",
                inputs=(x(stored, 4, 4), scale, point),
                case=f"zero point {zero}",
                opset=NEWER,
            )
            channels = (c(real, [0.5] * 4), c(stored, [zero] * 4))
            weights = c(stored, np.ones((4, 4)))
            yield Graph(
                operator="DequantizeLinear",
                inputs=(weights, *channels),
                case=f"weights, zero points {zero}",
                opset=NEWER,
            )
    for kind in (INT8, INT32):
        yield Graph(
            operator="DequantizeLinear", inputs=(x(kind, 4, 4), c(FP32, 0.5)), case="no zero point", opset=NEWER
        )
    yield Graph(operator="QuantizeLinear", inputs=(x(FP32, 4, 4), c(FP32, 0.5)), case="no zero point", opset=NEWER)
    yield Graph(
        operator="QuantizeLinear", inputs=(x(FP32, 4, 4), c(FP32, 0.5)), attributes={"output_dtype": INT8}, opset=NEWER
    )
    for case, scale in {
        "computed": x(FP32),
        "negative": c(FP32, -0.5),
        "zero": c(FP32, 0.0),
        "infinite": c(FP32, np.inf),
    }.items():
        for operator, kind in (("QuantizeLinear", FP32), ("DequantizeLinear", INT8)):
            yield Graph(operator=operator, inputs=(x(kind, 4, 4), scale, c(INT8, 0)), case=f"{case} scale", opset=NEWER)
    yield Graph(
        operator="QuantizeLinear",
        inputs=(x(FP32, 4, 4), c(FP32, 0.5), x(INT8)),
        case="computed zero point",
        opset=NEWER,
    )
    yield Graph(
        operator="DequantizeLinear",
        inputs=(x(INT8, 4, 4), c(FP32, 0.5), x(INT8)),
        case="computed zero point",
        opset=NEWER,
    )


def clips() -> Iterator[Graph]:
    for kind in TYPES:
        yield Graph(operator="Clip", inputs=(x(kind, 4, 4), c(kind, 0), c(kind, 1)), case="bounds")
    yield Graph(operator="Clip", inputs=(x(FP32, 4, 4), x(FP32), x(FP32)), case="computed bounds")


def control_flow() -> Iterator[Graph]:
    def branch(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("inner", FP32, [2])
        constant = helper.make_node("Constant", [], ["inner"], value=helper.make_tensor(name, FP32, [2], [1, 2]))
        return helper.make_graph([constant], name, [], [output])

    yield Graph(
        operator="If", inputs=(x(BOOL),), attributes={"then_branch": branch("then"), "else_branch": branch("else")}
    )


def opsets() -> Iterator[Graph]:
    for opset in range(9, 27):
        yield Graph(operator="Relu", inputs=(x(FP32, 4),), case="parser", opset=opset)


_MAKERS = (
    lacking,
    integer_operators,
    elementwise,
    mixed_floats,
    products,
    casts,
    attention,
    newer_operators,
    scatters,
    resizes,
    resizes_of_axes,
    topk,
    reductions,
    shapes,
    pads,
    one_hots,
    normalisations,
    pools,
    quantisation,
    clips,
    control_flow,
    opsets,
)
