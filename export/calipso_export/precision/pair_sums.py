"""Int8 weights that every CPU multiplies exactly, because no pair of them can overflow 16 bits.

An x86 CPU without VNNI multiplies uint8 activations by int8 weights with `VPMADDUBSW`. The instruction adds the
products of two neighbouring input channels and saturates the sum at 16 bits. ONNX Runtime (MLAS) and OpenVINO
(oneDNN) both use it. A pair is safe when its weights of one sign add up to at most 128 in magnitude, because
255 * 128 < 2^15. Two weights of opposite signs are always safe.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

_Array = npt.NDArray[np.float32] | npt.NDArray[np.int16]

# Of int16, 2^15 - 1, so many uint8 activations of 255 fit in.
PAIR_LIMIT = (2**15 - 1) // 255


def channel_peaks(array: _Array, out_axis: int, *, depthwise: bool) -> _Array:
    """Return the largest magnitude of each output channel's weights and of their sums in pairs.

    Pairs are neighbours on the axis of the input channels, at the same position of a kernel. Kernels of several
    positions over an odd number of inputs are paired differently by each engine (ONNX Runtime's graph gathers all
    positions into one row), so there the answer is twice the largest weight.

    Args:
        array: the weight of a MatMul [inputs, channels], or of a Gemm or Conv [channels, inputs, ...].
        out_axis: which of the first two axes holds the output channels.
        depthwise: whether it is a convolution with one input per channel, whose products no engine sums in pairs.

    Returns:
        [channels], of the array's dtype, which has to hold twice the largest weight.
    """
    rows: _Array = np.moveaxis(array, (out_axis, 1 - out_axis), (0, -1))
    peaks: _Array = np.abs(rows).reshape(len(rows), -1).max(axis=1)
    if depthwise:
        return peaks
    if rows.shape[-1] % 2 and rows[0, ..., 0].size > 1:
        return peaks + peaks
    if rows.shape[-1] % 2:
        rows = np.concatenate([rows, np.zeros_like(rows[..., :1])], axis=-1)
    sums = np.abs(rows[..., ::2] + rows[..., 1::2]).reshape(len(rows), -1).max(axis=1)
    return np.where(sums > peaks, sums, peaks)


def is_depthwise(node: ir.Node) -> bool:
    """Whether a node is a convolution with one input per output channel."""
    weight = node.inputs[1] if node.op_type == "Conv" else None
    grouped = "group" in node.attributes and node.attributes["group"].as_int() > 1
    return grouped and weight is not None and weight.shape is not None and weight.shape[1] == 1
