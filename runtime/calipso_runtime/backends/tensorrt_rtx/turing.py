"""Products that Turing (sm75) takes: TensorRT for RTX refuses matrix products in fp32 there, but no 1x1 convolution.

The head of a bundle is in fp32. On other GPUs its products are faster as they are: several become one kernel, and a
convolution takes a kernel more. So they are rewritten in the compiler's network, and only where Turing is asked for.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends.tensorrt_rtx.bindings import trt
from calipso_runtime.engines.families import Capability

TURING: Capability = (7, 5)
_MATRIX = 2
# Layers are `Any` here: the bindings type them as their base class, and only `__class__` makes more of them.


def products_as_convolutions(network: Any) -> list[npt.NDArray[np.float32]]:
    """Compute every fp32 product of rows [B,D] with a constant [D,C] as a convolution of [B,D,1,1], in place.

    Other products in fp32 stay, and the compiler refuses them: of two computed tensors, as CALIP has.

    Returns:
        The weights of the convolutions. The network refers to them: they have to live as long as the build.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(place).name: layer for layer in layers for place in range(layer.num_outputs)}
    kernels = []
    for layer in layers:
        if layer.type == trt.LayerType.MATRIX_MULTIPLY and layer.get_output(0).dtype == trt.DataType.FLOAT:
            kernel = _kernel(layer, makers)
            if kernel is not None:
                kernels.append(kernel)
                _replace(network, layers, layer, kernel)
    return kernels


def _kernel(layer: Any, makers: dict[str, Any]) -> npt.NDArray[np.float32] | None:
    """The constant that rows are multiplied by, as weights [C,D,1,1]; None where it is another product."""
    layer.__class__ = trt.IMatrixMultiplyLayer
    rows, matrix = layer.get_input(0), layer.get_input(1)
    maker = makers.get(matrix.name)
    plain = (layer.op0, layer.op1) == (trt.MatrixOperation.NONE,) * 2
    if not plain or len(rows.shape) != _MATRIX or maker is None or maker.type != trt.LayerType.CONSTANT:
        return None
    maker.__class__ = trt.IConstantLayer
    weights = np.asarray(maker.weights, np.float32).reshape(tuple(maker.shape))
    return np.ascontiguousarray(weights.T)[:, :, None, None]


def _replace(
    network: Any,
    layers: list[Any],
    product: Any,
    kernel: npt.NDArray[np.float32],
) -> None:
    """Let everything that reads a product read a convolution instead; the builder drops what nothing reads."""
    outputs, inputs = kernel.shape[:2]
    maps = network.add_shuffle(product.get_input(0))
    maps.reshape_dims = (-1, inputs, 1, 1)
    convolution = network.add_convolution_nd(maps.get_output(0), outputs, (1, 1), kernel)
    rows = network.add_shuffle(convolution.get_output(0))
    rows.reshape_dims = (-1, outputs)
    old, new = product.get_output(0), rows.get_output(0)
    name = old.name
    for each, role in ((maps, "maps"), (convolution, "convolution"), (rows, "rows")):
        each.name, each.metadata = f"{product.name}/{role}", product.metadata
    for layer in layers:
        for place in range(layer.num_inputs):
            read = layer.get_input(place)
            if read is not None and read.name == name:
                layer.set_input(place, new)
    is_output = any(network.get_output(place).name == name for place in range(network.num_outputs))
    if is_output:
        network.unmark_output(old)
    old.name, new.name = f"{name}/product", name
    if is_output:
        network.mark_output(new)
