"""What is read off a compiler's list of layers.

The JSON follows reports of TensorRT 8.2 to 10.x, the text that which TensorRT for RTX 1.7 writes.
"""

import json

import pytest

from calipso_runtime.engines.layer_lists import read_layers, read_listing
from calipso_runtime.engines.layers import report

BLOCK = "tower.visual.transformer.resblocks.0"


def layer(name: str, kind: str, tactic: str, types: list[str], nodes: list[str]) -> dict[str, object]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "x", "Dimensions": [1, 12, 50, 64], "Format/Datatype": types[-1]}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 12, 50, 64], "Format/Datatype": types[0]}],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def judged(*layers: object):
    return report(read_layers(json.dumps({"Layers": list(layers)})))


def product(
    name: str, operands: list[str], output: str, nodes: list[str], *, kind: str = "gemm", tactic: str = ""
) -> dict[str, object]:
    """One input, and the rest of the operands as constants, before the two scales that every product has."""
    tensors = [{"Name": "t", "Dimensions": [64, 64], "Format/Datatype": each} for each in operands]
    scale = {"Name": "alpha", "Dimensions": [1], "Format/Datatype": "Float"}
    made = layer(name, kind, tactic, [output], nodes)
    return {**made, "Inputs": tensors[:1], "Constants": [*tensors[1:], scale, scale]}


def line(name: str, kind: str, operands: list[str], output: str, nodes: list[str]) -> str:
    """The same as a line of a verbose build log."""
    tensors = [
        f"{{ Name: t, Dimensions: [-1,{place + 2}], Strides: [64,1], StrideOrder: [1,0], Datatype: {each}, "
        "Format: (Linear) Row major linear format }"
        for place, each in enumerate([*operands, output])
    ]
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensors[0]}], Constants: [ {', '.join(tensors[1:-1])}], "
        f"Outputs: [ {tensors[-1]}], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: {metadata}"
    )


def test_an_eight_bit_product_is_known_by_what_it_multiplies_though_its_output_is_wide() -> None:
    node = f"{BLOCK}.mlp.c_fc/MatMul"

    found = judged(product("gemm", ["Int8", "Int8"], "Float", [node, f"{node}/dequantise_weight"]))

    assert (found.heavy_types, found.products, found.quantised) == ({"int8": 1}, {node: "int8"}, [node])


@pytest.mark.parametrize(
    ("operands", "wider"), [(["Half", "Half"], "fp16"), (["Int8", "Half"], "int8 x fp16"), (["Int8", "Int8"], None)]
)
def test_eight_bit_weights_of_a_wider_product_are_dequantised(operands: list[str], wider: str | None) -> None:
    node = f"{BLOCK}.mlp.c_fc/MatMul"

    found = judged(product("gemm", operands, "Half", [node, f"{node}/dequantise_weight"]))

    assert found.dequantised == ({} if wider is None else {node: wider})


def test_a_product_of_two_types_names_both() -> None:
    assert judged(
        product("__myl_CastMulFc_myl0_5", ["Int8", "Half"], "Half", [], kind="runtime_fusion")
    ).heavy_types == {"int8 x fp16": 1}


def test_weights_that_an_older_tensorrt_lists_apart_are_an_operand() -> None:
    apart = layer("conv", "CaskConvolution", "sm80_xmma_fprop", ["Int8"], [])

    assert judged({**apart, "Weights": {"Type": "Half", "Count": 9}}).heavy_types == {"int8 x fp16": 1}


def test_of_several_profiles_the_widest_product_is_reported() -> None:
    node = f"{BLOCK}/MatMul"

    found = judged(*(product("gemm", [kind, kind], "Float", [node]) for kind in ("Int8", "Float", "Int8")))

    assert found.products == {node: "fp32"}


def test_fused_attention_does_not_claim_the_products_before_it() -> None:
    before, inside = f"{BLOCK}/MatMul", f"{BLOCK}/MatMul_3"

    found = judged(
        product("_gemv_mha_v1_myl0_25", ["Float", "Float"], "Float", [inside, before], kind="kgen"),
        product("gemm", ["Int8", "Int8"], "Float", [before]),
    )

    assert found.products == {before: "int8", inside: "fp32"}


def test_the_hash_in_a_kernels_name_says_nothing() -> None:
    found = judged(layer("__myl_Move_myl0_3", "kgen", "__myl_Move_0x73fcd62e", ["Half"], [f"{BLOCK}.mlp.c_fc/Gelu"]))

    assert found.heavy_types == {}


def test_the_text_of_a_verbose_log_says_the_same_as_the_inspectors_json() -> None:
    nodes = [f"{BLOCK}/MatMul", "head/MatMul"]
    empty = "Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "
    text = "\n".join(
        [
            "Layers:",
            f"Name: shapes, LayerType: shape_call, {empty}",
            line("block/MatMul_myl0_2", "gemm", ["Int8", "Int8"], "Float", nodes[:1]),
            line("head/MatMul [profile 1]_myl1_3", "gemm", ["Half", "Half"], "Half", nodes[1:]),
            "",
            "I/O Tensors:",
            " Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,3,224,224]",
        ]
    )

    found = report(read_listing(text))

    assert (found.count, found.heavy_types) == (3, {"int8": 1, "fp16": 1})
    assert found.products == dict(zip(nodes, ("int8", "fp16"), strict=True))
    assert found.is_detailed


@pytest.mark.parametrize("text", ["", "Layer: one", '{"Layers": []}'])
def test_what_is_no_list_of_layers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'Layers:'"):
        read_listing(text)


def test_a_kernel_of_fused_attention_is_known_by_its_name() -> None:
    found = judged(layer("_gemm_mha_v2_myl0_17", "kgen", "_gemm_mha_v2_0x957a2f", ["Half"], [f"{BLOCK}/Softmax"]))

    assert (found.fused, found.unfused, found.untold) == (1, [], [])


def test_a_kernel_of_fused_attention_is_known_by_its_nodes() -> None:
    nodes = [f"{BLOCK}/MatMul_2", f"{BLOCK}/Softmax", f"{BLOCK}/MatMul_3"]

    assert judged(layer("__myl_MulSum_myl0_3", "kgen", "__myl_0x12", ["Half"], nodes)).fused == 1


def test_a_softmax_on_its_own_is_attention_that_is_not_fused() -> None:
    found = judged(
        layer("gemm_1", "gemm", "sm80_xmma_gemm_f16f16", ["Half"], [f"{BLOCK}/MatMul_2"]),
        layer("softmax_1", "kgen", "__myl_Softmax", ["Float"], [f"{BLOCK}/Softmax"]),
        layer("gemm_2", "gemm", "sm80_xmma_gemm_f16f16", ["Half"], [f"{BLOCK}/MatMul_3"]),
    )

    assert (found.fused, found.unfused) == (0, [BLOCK])
    assert found.heavy_types == {"fp16": 2}


def test_kernels_that_copy_for_an_attention_operator_do_not_count_against_its_fused_kernel() -> None:
    node = f"{BLOCK}/Attention"
    copies = [f"{BLOCK}/MatMul.1", f"{BLOCK}/MatMul.1/dequantise_weight", node]

    found = judged(
        layer("__myl_AddReshTranReshMove_myl0_5", "kgen", "__myl_Add", ["Half"], copies),
        layer("_gemm_mha_v2_myl0_6", "kgen", "_gemm_mha_v2_0x12", ["Half"], [node]),
        layer("__myl_MoveReshTran_myl0_7", "kgen", "__myl_Move", ["Half"], [node]),
    )

    assert (found.fused, found.unfused) == (1, [])


def test_an_attention_operator_that_one_profile_does_not_fuse_is_reported() -> None:
    node = f"{BLOCK}/Attention"

    found = judged(
        layer("_gemm_mha_v2_myl0_6", "kgen", "_gemm_mha_v2_0x12", ["Half"], [node]),
        layer("__myl_MaxSubExpSumDiv_myl1_6", "kgen", "__myl_Max", ["Half"], [node]),
    )

    assert (found.fused, found.unfused) == (1, [BLOCK])


def test_calips_softmax_is_not_expected_to_be_fused() -> None:
    assert judged(layer("s", "kgen", "__myl_Softmax", ["Float"], ["calip/Softmax"])).unfused == []


@pytest.mark.parametrize("name", ["{ForeignNode[a...b]}", "anything"])
def test_a_region_of_many_kernels_tells_nothing_of_fusion(name: str) -> None:
    nodes = [f"tower.visual.transformer.resblocks.{block}/Softmax" for block in range(2)]

    found = judged(layer(name, "Myelin", "", ["Half"], nodes))

    assert (found.fused, found.unfused, len(found.untold)) == (0, [], 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Half", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("Float", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("BFloat16", "bf16"),
        ("Row major linear BF16 format", "bf16"),
        ("Int8", "int8"),
        ("Four wide channel vectorized row major Int8 format", "int8"),
        ("FP8 E4M3", "fp8"),
        ("FP8", "fp8"),
    ],
)
def test_types_are_read_however_a_version_writes_them(text: str, kind: str) -> None:
    assert judged(layer("gemm", "gemm", "sm80_xmma_gemm", [text], [])).heavy_types == {kind: 1}


def test_layers_of_which_only_names_are_told_are_counted() -> None:
    found = judged("layer one", "layer two")

    assert (found.count, found.heavy_types, found.is_detailed) == (2, {}, False)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}', "Layers:\n- none"])
def test_what_is_no_layer_information_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Layers|JSON|Expecting"):
        read_layers(text)


def test_layers_that_only_reformat_are_counted_apart() -> None:
    found = judged(layer("Reformatting CopyNode for Input 0 to gemm", "Reformat", "0x3e8", ["Half", "Float"], []))

    assert (found.reformats, found.heavy_types) == (1, {})
