"""Products in int8 whose answers are known in integers, as a CPU with VNNI adds them up."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from precision_samples import graph_of, node

from calipso_export.precision import PRECISIONS
from calipso_export.precision.lower import Lowered, lower

# A power of two, so that quantising the sample activations is exact.
STEP = 2.0**-7
RNG = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """One product between two that do nothing, which stay in fp32.

    Attributes:
        weight: float32 [inputs, channels], or a kernel [channels, inputs / group, height, width].
        attributes: of the convolution.
    """

    weight: np.ndarray
    attributes: dict[str, object] = dataclasses.field(default_factory=dict)

    @property
    def group(self) -> int:
        """Of a convolution; 1 of a matrix."""
        return int(self.attributes.get("group", 1))  # type: ignore[call-overload]

    @property
    def inputs(self) -> int:
        """How many channels it reads."""
        return len(self.weight) if self.weight.ndim == 2 else self.weight.shape[1] * self.group

    def integers(self) -> np.ndarray:
        """Activations in all of int8, some of them such that every pair of products has one sign: [5 or 1, ...]."""
        sizes = (6, self.inputs) if self.weight.ndim == 2 else (3, self.inputs, 6, 5)
        integers = RNG.integers(-128, 128, sizes)
        integers[0], integers[1] = 127, -128
        return integers

    def model(self) -> ir.Model:
        """The graph in fp32."""
        weights = (identity(self.inputs, self.weight.ndim), self.weight, identity(self.channels, self.weight.ndim))
        operator = "MatMul" if self.weight.ndim == 2 else "Conv"
        middle = self.attributes
        nodes = [
            node(operator, [read, f"w{place}"], made, **(middle if place == 1 else {}))
            for place, (read, made) in enumerate((("x", "h0"), ("h0", "h1"), ("h1", "y")))
        ]
        shape = ["batch", self.inputs] if operator == "MatMul" else ["batch", self.inputs, 6, 5]
        arrays = {f"w{place}": weight.astype(np.float32) for place, weight in enumerate(weights)}
        return graph_of(nodes, arrays, shape=shape, opset=20)

    @property
    def channels(self) -> int:
        """How many channels it gives."""
        return self.weight.shape[1 if self.weight.ndim == 2 else 0]

    def lowered(self, precision: str, *, full_range: bool = False) -> Lowered:
        """Its graphs in a precision."""
        return lower(self.model(), PRECISIONS[precision], ranges={"h0": 127 * STEP}, full_range=full_range)


def identity(size: int, rank: int) -> np.ndarray:
    """A product that does nothing."""
    return np.eye(size).reshape(size, size, *([1] * (rank - 2)))


def constant_signs(*shape: int) -> np.ndarray:
    """Weights whose pairs have one sign: nothing but the scale keeps their sums in 16 bits."""
    weights = RNG.uniform(0.5, 1, shape)
    weights.reshape(-1)[0] = 1
    return weights


MATRICES = {
    "a matrix": Product(weight=constant_signs(64, 33)),
    "a matrix of random signs": Product(weight=RNG.standard_normal((64, 16))),
    "a matrix with an odd number of inputs": Product(weight=constant_signs(63, 16)),
    "a wide matrix": Product(weight=constant_signs(256, 65)),
}
CONVOLUTIONS = {
    "a kernel of one position": Product(weight=constant_signs(16, 8, 1, 1)),
    "a kernel of nine positions": Product(weight=constant_signs(16, 6, 3, 3), attributes={"pads": [1, 1, 1, 1]}),
    "a kernel with an odd number of inputs": Product(weight=constant_signs(16, 5, 3, 3)),
    "a kernel with strides": Product(weight=constant_signs(8, 4, 2, 2), attributes={"strides": [2, 2]}),
    "a kernel in groups": Product(weight=constant_signs(8, 4, 3, 3), attributes={"group": 2}),
    "a depthwise kernel": Product(weight=constant_signs(8, 1, 3, 3), attributes={"group": 8}),
}


def write(product: Product, graph: ir.Model, folder: Path, name: str) -> np.ndarray:
    """Write a graph and its input, and return the integers [..] that it has to add up to."""
    ir.save(graph, folder / f"{name}.onnx")
    integers = product.integers()
    np.save(folder / f"{name}.x.npy", (integers * STEP).astype(np.float32))
    return integers


def sums(product: Product, lowered: Lowered, integers: np.ndarray) -> np.ndarray:
    """Exact sums of int8 products, int64, in the shape of the answer."""
    weight = lowered.portable.graph.initializers["w1.int8"].const_value.numpy().astype(np.int64)
    if weight.ndim == 2:
        return integers @ weight
    torch = pytest.importorskip("torch", reason="convolves in integers with torch")
    attributes = product.attributes
    found = torch.nn.functional.conv2d(
        torch.nn.functional.pad(torch.from_numpy(integers), _pads(attributes)),
        torch.from_numpy(weight),
        stride=attributes.get("strides", 1),
        groups=product.group,
    )
    return found.numpy()


def as_sums(product: Product, lowered: Lowered, answer: np.ndarray) -> np.ndarray:
    """An answer in fp32 as the integers that were added up: divided by both scales."""
    scale = lowered.portable.graph.initializers["w1.int8.scale"].const_value.numpy().astype(np.float64) * STEP
    if product.weight.ndim > 2:
        scale = scale.reshape(-1, 1, 1)
    return answer.astype(np.float64) / scale


def _pads(attributes: dict[str, object]) -> list[int]:
    above, left, below, right = attributes.get("pads", (0, 0, 0, 0))  # type: ignore[misc]
    return [left, right, above, below]
