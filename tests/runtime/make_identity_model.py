"""Writes the graph of one node that `backends/ort.py` tries providers on: run it and paste its output."""

from onnx import TensorProto, helper


def identity_model() -> bytes:
    """The ONNX file of y = x, float32 [1]."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "i",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


if __name__ == "__main__":
    print(identity_model().hex())  # noqa: T201
