"""The table of the lint: every restriction of TensorRT that a graph of a classifier can meet.

A rule is one line here, and mostly one function in `operators`, `tensors` or `attention`. Sources name the file and
the release of onnx-tensorrt, or of TensorRT's own headers and notes, in which the restriction is written; or the
compiler that refused graphs, and took others, in the tests of the lint.
"""

from collections.abc import Iterator

from onnx import TensorProto

from calipso_export.lint import operators, tensors
from calipso_export.lint.attention import fusable
from calipso_export.lint.network import Network, is_foreign
from calipso_export.lint.rule import ERROR, WARNING, Find, Nodes, Rule, Tensors
from calipso_export.lint.targets import MIN_OPSET, RTX, TARGETS, TENSORRT, Target, before, since
from calipso_export.lint.types import label

# The same in 10.1-GA, 10.14-GA, 10.15, 10.16 and 11.1, where no release is named.
_DOCS = "onnx-tensorrt docs/operators.md"
_CHANGES = "onnx-tensorrt docs/Changelog.md"
_IMPORTERS = "onnx-tensorrt onnxOpImporters.cpp"
_CHECKERS = "onnx-tensorrt onnxOpCheckers.cpp"
_COMPILER = "TensorRT for RTX 1.7.1.116"
_COMPOSE = "write it with older operators"
_FIXED = "give it as a constant"
_AROUND_ZERO = "quantise around zero: a zero point of constant zeros, or none"
_FUSION = "TensorRT documentation, multi-head attention fusion"
_FUSION_NOW = f"{_FUSION}; release notes 10.14, 11.3"
_FUSE = "give queries, keys and values in fp16 or bf16, scaled before the product, with nothing else in between"

# Not supported in any release from 10.1 to 11.1.
_LACKING = (
    "AffineGrid Bernoulli BitShift Bitwise* Col2Im CenterCropPad Compress ConcatFromSequence DFT Det ImageDecoder "
    "MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional* RegexFullMatch Sequence* "
    "SoftmaxCrossEntropyLoss SplitToSequence String* TfIdfVectorizer Unique"
)


def _foreign(network: Network) -> Iterator[tuple[str, str]]:
    for node in network.nodes:
        if is_foreign(node):
            yield f"node {label(node)} ({node.domain}.{node.op_type})", "it is no standard operator"


def _unknown(network: Network) -> Iterator[tuple[str, str]]:
    if network.problem is not None:
        yield "the graph", network.problem


def _opset_of(target: Target) -> Find:
    def find(network: Network) -> Iterator[tuple[str, str]]:
        if not MIN_OPSET <= network.opset <= target.max_opset:
            yield "the graph", f"it is of opset {network.opset}, where {MIN_OPSET} to {target.max_opset} are supported"

    return find


# Where one of these finds something, the types of tensors are not known, and no other rule is asked.
FIRST = (
    Rule(
        name="standard-operators",
        find=_foreign,
        fix="export standard operators; the lint knows no plugins and no functions",
        source=_DOCS,
    ),
    Rule(name="known-types", find=_unknown, fix="check the file with onnx.checker", source="ONNX's type inference"),
)

RULES = (
    *(
        Rule(
            name="opset",
            find=_opset_of(target),
            fix="export to an opset in between",
            source=target.source,
            targets=(target.name,),
        )
        for target in TARGETS.values()
    ),
    Rule(
        name="operator-supported",
        find=Nodes(_LACKING, operators.is_there),
        fix="compute it outside of the graph",
        source=_DOCS,
    ),
    Rule(
        name="integer-operator",
        find=Nodes("ConvInteger MatMulInteger QLinear* DynamicQuantizeLinear", operators.is_there),
        fix="put QuantizeLinear and DequantizeLinear around a float operator",
        source=_DOCS,
    ),
    Rule(
        name="operator-supported",
        find=Nodes("Attention", operators.is_there),
        fix="write it as MatMul, Softmax and MatMul",
        source=f"{_CHANGES} (10.14)",
        targets=before(10, 14),
    ),
    Rule(
        name="operator-supported",
        find=Nodes("RMSNormalization RotaryEmbedding TensorScatter", operators.is_there),
        fix=_COMPOSE,
        source=f"{_CHANGES} (10.15)",
        targets=before(10, 15),
    ),
    Rule(
        name="operator-supported",
        find=Nodes("Swish", operators.is_there),
        fix="write it as Sigmoid and Mul",
        source="TensorRT CHANGELOG.md (11.0)",
        targets=before(11, 0),
    ),
    Rule(
        name="attention-outputs",
        find=Nodes("Attention", operators.first_output_only),
        fix="keep the first output alone",
        source=f"{_IMPORTERS} (10.15)",
        targets=since(10, 14),
    ),
    Rule(
        name="attention-past",
        find=Nodes("Attention", operators.inputs_absent(4, ("past_key", "past_value", "nonpad_kv_seqlen"))),
        fix="attend to all keys at once",
        source=f"{_DOCS} (10.14-GA)",
        targets=since(10, 14),
    ),
    Rule(
        name="attention-softcap",
        find=Nodes("Attention", operators.softcap),
        fix="leave it out",
        source=f"{_CHECKERS}, {_DOCS} (10.14-GA)",
        targets=since(10, 14),
    ),
    Rule(
        name="attention-attributes",
        find=Nodes("Attention", operators.attribute_absent("softmax_precision", "qk_matmul_output_mode")),
        fix="leave it out",
        source=f"{_CHECKERS}, {_DOCS} (10.14-GA)",
        targets=since(10, 14, among=TENSORRT),
    ),
    Rule(
        name="attention-attributes",
        find=Nodes("Attention", operators.attribute_absent("softmax_precision")),
        fix="leave it out",
        source=_COMPILER,
        targets=RTX,
    ),
    *(
        Rule(name="attention-kernel", find=Nodes("Attention", check), fix=fix, source=_COMPILER, targets=RTX)
        for check, fix in (
            (operators.half_inputs, "cast queries, keys and values to fp16 or bf16, or write it with older operators"),
            (operators.large_heads, f"make heads of {operators.LEAST_HEAD} to {operators.MOST_HEAD} channels"),
            (operators.separate_inputs, "make them two tensors: the compiler crashes"),
        )
    ),
    Rule(
        name="attention-head",
        find=Nodes("Attention", operators.small_heads),
        fix=f"keep heads up to {operators.MOST_HEAD} channels, or write it as MatMul, Softmax and MatMul",
        source=f"{_FUSION}; NvInfer.h (IAttention is not decomposed unless asked)",
        targets=since(10, 14),
    ),
    *(
        Rule(
            name="attention-fusion",
            find=Nodes("Softmax", fusable(aligned=aligned, upcast=upcast)),
            fix=_FUSE,
            source=_FUSION_NOW,
            severity=WARNING,
            targets=targets,
        )
        # Since 10.14 heads are padded; since 11.3 16-bit inputs may be cast to fp32 around an attention.
        for aligned, upcast, targets in (
            (8, False, before(10, 14)),
            (1, False, ("tensorrt-10.16",)),
            (1, True, since(11, 3)),
        )
    ),
    Rule(
        name="scatter-elements-plugin",
        find=Nodes("ScatterElements", operators.attribute_is("reduction", "none")),
        fix="use reduction none: a plugin does the others, which a version-compatible engine has to carry",
        source=f"{_IMPORTERS} (10.1), TensorRT plugin/scatterElementsPlugin/README.md (11.1)",
        severity=WARNING,
        targets=TENSORRT,
    ),
    Rule(
        name="scatter-elements-plugin",
        find=Nodes("ScatterElements", operators.attribute_is("reduction", "none")),
        fix="use reduction none: there is no plugin for the others",
        source=_COMPILER,
        targets=RTX,
    ),
    Rule(
        name="scatter-nd-reduction",
        find=Nodes("ScatterND", operators.attribute_absent("reduction")),
        fix="leave the attribute out, even where it is none",
        source=f"{_IMPORTERS} (10.1), {_CHANGES} (10.9)",
        targets=before(10, 9),
    ),
    Rule(
        name="scatter-nd-reduction",
        find=Nodes("ScatterND", operators.attribute_is("reduction", "none")),
        fix="use reduction none",
        source=_DOCS,
        targets=since(10, 9),
    ),
    Rule(
        name="resize-antialias",
        find=Nodes("Resize", operators.attribute_is("antialias", 0)),
        fix="smooth pictures before the graph",
        source=f"{_CHECKERS}, {_DOCS}",
    ),
    Rule(
        name="resize-aspect-ratio",
        find=Nodes("Resize", operators.attribute_is("keep_aspect_ratio_policy", "stretch")),
        fix="give the sizes, with stretch",
        source=f"{_CHECKERS}, {_DOCS}",
    ),
    Rule(
        name="resize-coordinates",
        find=Nodes(
            "Resize",
            operators.attribute_is(
                "coordinate_transformation_mode",
                "half_pixel",
                "pytorch_half_pixel",
                "tf_half_pixel_for_nn",
                "asymmetric",
                "align_corners",
            ),
        ),
        fix="use half_pixel, pytorch_half_pixel, asymmetric or align_corners",
        source=f"{_CHECKERS}, {_DOCS}",
    ),
    Rule(
        name="resize-scales",
        find=Nodes("Resize", operators.scales_fit_axes),
        fix="give the scales of all axes, or constants",
        source=_DOCS,
    ),
    Rule(
        name="resize-sizes",
        find=Nodes("Resize", operators.sizes_fit_axes),
        fix="give the scales, or compute the sizes of all axes",
        source=_COMPILER,
        targets=RTX,
    ),
    Rule(
        name="resize-axes",
        find=Nodes("Resize", operators.inner_axes),
        fix="resize the last 3 axes by linear, or the last 2 by cubic",
        source=f"{_IMPORTERS} (10.1), {_COMPILER}",
    ),
    Rule(
        name="resize-cubic",
        find=Nodes("Resize", operators.attribute_is("mode", "nearest", "linear")),
        fix="resize before the graph, or compare answers: operators.md lists nearest and linear, importers take cubic",
        source=f"{_DOCS}, {_IMPORTERS}",
        severity=WARNING,
    ),
    Rule(
        name="topk-sorted",
        find=Nodes("TopK", operators.attribute_is("sorted", 1)),
        fix="let it sort",
        source=_DOCS,
        targets=TENSORRT,
    ),
    Rule(
        name="topk-k",
        find=Nodes("TopK", operators.kept_up_to(operators.MOST_KEPT - 1)),
        fix=f"keep less than {operators.MOST_KEPT}",
        source=f"{_DOCS}, NvInfer.h (ITopKLayer)",
        targets=TENSORRT,
    ),
    Rule(
        name="topk-k",
        find=Nodes("TopK", operators.kept_up_to(operators.MOST_KEPT)),
        fix=f"keep less than {operators.MOST_KEPT}",
        source=_COMPILER,
        targets=RTX,
    ),
    Rule(
        name="topk-k",
        find=Nodes("TopK", operators.constant_input(1, "K")),
        fix=f"give a constant: from {operators.MOST_KEPT} on it fails when it runs",
        source="NvInfer.h (ITopKLayer)",
        severity=WARNING,
    ),
    Rule(
        name="constant-axes",
        find=Nodes("Reduce*", operators.constant_input(1, "axes")),
        fix=_FIXED,
        source=_DOCS,
    ),
    Rule(
        name="constant-axes",
        find=Nodes("Squeeze Unsqueeze", operators.constant_input(1, "axes")),
        fix=_FIXED,
        source=f"{_IMPORTERS} (10.1), {_CHANGES} (10.7)",
        targets=before(10, 7),
    ),
    Rule(
        name="constant-axes",
        find=Nodes("Squeeze Unsqueeze", operators.constant_input(1, "axes")),
        fix="give a constant: the parser takes only what it can fold to one",
        source=f"{_DOCS} (10.14-GA)",
        severity=WARNING,
        targets=since(10, 7, among=TENSORRT),
    ),
    Rule(
        name="constant-axes",
        find=Nodes("Squeeze Unsqueeze", operators.constant_input(1, "axes")),
        fix=_FIXED,
        source=_COMPILER,
        targets=RTX,
    ),
    Rule(
        name="squeeze-axes",
        find=Nodes("Squeeze", operators.squeezed_axes_known),
        fix="give the axes",
        source=f"{_IMPORTERS} (10.1), onnx-tensorrt release notes 11.5",
        targets=before(11, 5),
    ),
    Rule(
        name="constant-axes",
        find=Nodes("Pad", operators.constant_input(3, "axes")),
        fix=_FIXED,
        source=f"{_IMPORTERS} (10.1), {_CHANGES} (10.4)",
        targets=before(10, 4),
    ),
    Rule(
        name="onehot-depth",
        find=Nodes("OneHot", operators.constant_input(1, "depth")),
        fix=_FIXED,
        source=_DOCS,
        targets=TENSORRT,
    ),
    Rule(
        name="first-output",
        find=Nodes("LayerNormalization BatchNormalization MaxPool", operators.first_output_only),
        fix="keep the first output alone",
        source=f"{_CHECKERS}, {_DOCS}",
    ),
    Rule(
        name="inference-mode",
        find=Nodes("BatchNormalization", operators.attribute_is("training_mode", 0)),
        fix="export the model in evaluation mode",
        source=_CHECKERS,
    ),
    Rule(
        name="inference-mode",
        find=Nodes("Dropout", operators.no_training),
        fix="export the model in evaluation mode",
        source=_DOCS,
    ),
    Rule(
        name="pool-dilations",
        find=Nodes("AveragePool LpPool MaxPool", operators.ones("dilations")),
        fix="pool without dilation",
        source=f"{_CHECKERS}, {_DOCS}",
    ),
    Rule(
        name="symmetric",
        find=Nodes("QuantizeLinear DequantizeLinear", operators.symmetric()),
        fix=_AROUND_ZERO,
        source=f"{_DOCS}, {_IMPORTERS}",
        targets=TENSORRT,
    ),
    Rule(
        name="symmetric",
        find=Nodes("QuantizeLinear DequantizeLinear", operators.symmetric(TensorProto.FLOAT8E4M3FN)),
        fix=_AROUND_ZERO,
        source=_COMPILER,
        targets=RTX,
    ),
    Rule(
        name="symmetric",
        find=Nodes("QuantizeLinear DequantizeLinear", operators.off_zero),
        fix=f"{_AROUND_ZERO}: the compiler takes another one, and what it then computes was not seen",
        source=_COMPILER,
        severity=WARNING,
        targets=RTX,
    ),
    Rule(
        name="positive-scale",
        find=Nodes("QuantizeLinear DequantizeLinear", operators.constant_scale),
        fix="give a constant scale above zero",
        source=f"{_IMPORTERS}, NvInfer.h (IQuantizeLayer)",
        targets=TENSORRT,
    ),
    Rule(
        name="positive-scale",
        find=Nodes("QuantizeLinear DequantizeLinear", operators.positive_scale),
        fix="give a constant scale above zero",
        source=f"{_IMPORTERS}, NvInfer.h (IQuantizeLayer)",
    ),
    Rule(
        name="float-input",
        find=Nodes("Clip Conv Erf Exp Gemm MatMul Softmax", operators.float_input),
        fix="cast to fp32, fp16 or bf16",
        source=_DOCS,
        targets=TENSORRT,
    ),
    Rule(
        name="operator-types",
        find=Nodes(" ".join(sorted(operators.REFUSED_BY_RTX)), operators.refused_type),
        fix="cast to a type that it takes, such as fp32",
        source=_COMPILER,
        targets=RTX,
    ),
    Rule(
        name="float-input",
        find=Nodes("Pow", operators.integer_power),
        fix="cast to fp32, fp16 or bf16",
        source=f"{_CHANGES} (10.8, 10.12)",
        targets=before(10, 8),
    ),
    Rule(
        name="cast-types",
        find=Nodes("Cast CastLike", operators.cast_only()),
        fix="use QuantizeLinear and DequantizeLinear",
        source=_DOCS,
        targets=TENSORRT,
    ),
    Rule(
        name="cast-types",
        find=Nodes("Cast CastLike", operators.cast_only(TensorProto.INT8)),
        fix="use QuantizeLinear and DequantizeLinear",
        source=_COMPILER,
        targets=RTX,
    ),
    Rule(
        name="einsum-equation",
        find=Nodes("Einsum", operators.lower_case),
        fix="use lower-case letters",
        source=_CHECKERS,
    ),
    Rule(
        name="einsum-equation",
        find=Nodes("Einsum", operators.plain_equation),
        fix="give every axis a letter of its own, without ellipsis",
        source=f"NvInfer.h (IEinsumLayer, 10.3), {_CHANGES} (10.12)",
        targets=before(10, 12),
    ),
    Rule(
        name="no-control-flow",
        find=Nodes("*", operators.no_graphs),
        fix="export without control flow",
        source="this lint, which does not look inside",
    ),
    Rule(
        name="one-float-type",
        find=Nodes("*", operators.one_float_type(*operators.MAY_MIX)),
        fix="cast to one float type",
        source="TensorRT documentation, strongly typed networks",
        targets=TENSORRT,
    ),
    Rule(
        name="one-float-type",
        find=Nodes("*", operators.one_float_type(*operators.MAY_MIX, "Pow")),
        fix="cast to one float type",
        source=_COMPILER,
        targets=RTX,
    ),
    Rule(
        name="one-float-type",
        find=Nodes("BatchNormalization", operators.mixed_floats),
        fix="cast to one float type",
        source=f"{_CHANGES} (10.7)",
        targets=before(10, 7),
    ),
    Rule(
        name="tensor-types",
        find=Tensors(tensors.known_type),
        fix="use fp32, fp16, bf16, int32, int64 or bool",
        source=_DOCS,
    ),
    *(
        Rule(
            name="no-double",
            find=Tensors(tensors.no_double),
            fix="cast to fp32, fp16 or bf16: TensorRT would compute in fp32",
            source=source,
            severity=severity,
            targets=targets,
        )
        for source, severity, targets in ((_DOCS, ERROR, TENSORRT), (_COMPILER, WARNING, RTX))
    ),
    Rule(
        name="bytes-at-the-edge",
        find=Tensors(tensors.bytes_at_the_edge),
        fix="keep bytes to inputs and outputs of the graph, beside a Cast to fp32 or fp16",
        source=f"{_DOCS}, NvInferRuntimeBase.h (DataType::kUINT8)",
        targets=TENSORRT,
    ),
    Rule(
        name="bytes-at-the-edge",
        find=Tensors(tensors.bytes_outside),
        fix="keep bytes to inputs and outputs of the graph, beside a Cast to fp32 or fp16",
        source=_COMPILER,
        targets=RTX,
    ),
)
