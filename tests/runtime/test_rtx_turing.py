"""The compiler's own network, whose fp32 products become convolutions for Turing: weights, names and shapes stay."""

from pathlib import Path

import numpy as np
import onnx
import rtx_samples
from onnx import TensorProto, helper, numpy_helper

from needs import NEEDS_RTX

pytestmark = NEEDS_RTX
WIDTH, CLASSES = 8, 5
TEXT = np.random.default_rng(0).standard_normal((WIDTH, CLASSES)).astype(np.float32)


def parsed(folder: Path, nodes: list[onnx.NodeProto], *, outputs: tuple[str, ...] = ("logits",)):
    """The network of a head over rows [batch,8], with all that it needs to live."""
    from calipso_runtime.backends.tensorrt_rtx.bindings import trt

    constants = [numpy_helper.from_array(TEXT, "text")]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", WIDTH])
    graph = helper.make_graph(nodes, "head", [rows], made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", rtx_samples.OPSET)], ir_version=10)
    onnx.save(model, folder / "head.onnx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(folder / "head.onnx"))
    return network, (parser, builder, logger)


def rewritten(network: object) -> list[np.ndarray]:
    from calipso_runtime.backends.tensorrt_rtx.turing import products_as_convolutions

    return products_as_convolutions(network)


def product(output: str = "logits", second: str = "text") -> onnx.NodeProto:
    return helper.make_node("MatMul", ["rows", second], [output], name=f"head/{output}")


def test_the_weights_of_the_convolution_are_those_of_the_product(tmp_path: Path) -> None:
    network, held = parsed(tmp_path, [product()])

    (kernel,) = rewritten(network)

    np.testing.assert_array_equal(kernel[:, :, 0, 0], TEXT.T)
    assert kernel.shape == (CLASSES, WIDTH, 1, 1)
    del held


def test_an_output_of_the_network_keeps_its_name_and_shape(tmp_path: Path) -> None:
    network, held = parsed(tmp_path, [product()])

    rewritten(network)

    found = [network.get_output(place) for place in range(network.num_outputs)]
    assert [(each.name, *each.shape) for each in found] == [("logits", -1, CLASSES)]
    del held


def test_what_read_the_product_reads_the_convolution(tmp_path: Path) -> None:
    nodes = [product("scores"), helper.make_node("Exp", ["scores"], ["logits"], name="head/Exp")]
    network, held = parsed(tmp_path, nodes)

    rewritten(network)

    layers = [network.get_layer(index) for index in range(network.num_layers)]
    (exp,) = [layer for layer in layers if layer.name == "head/Exp"]
    (rows,) = [layer for layer in layers if layer.name == "head/scores/rows"]
    assert exp.get_input(0).name == rows.get_output(0).name == "scores"
    del held


def test_a_product_of_two_computed_tensors_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["rows"], ["turned"], name="head/Transpose"),
        helper.make_node("MatMul", ["rows", "turned"], ["logits"], name="head/MatMul"),
    ]
    network, held = parsed(tmp_path, nodes)

    assert rewritten(network) == []
    del held
