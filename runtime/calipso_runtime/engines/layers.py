"""What an engine was made of: the types of its products, and whether its attention is fused.

`layer_lists` reads the layers. With less than detailed verbosity, and for regions that stay one foreign node, a
compiler says less: what it does not say is reported as unknown, not as missing.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# A product multiplies two tensors; more inputs of its kernel are scales, biases and residuals.
OPERANDS = 2
# From narrow to wide: a product of two types computes in the wider one.
_BY_WIDTH = ("fp4", "fp8", "int8", "fp16", "bf16", "fp32")
EIGHT_BITS = ("int8", "fp8")
_TIMES = " x "
# Kernels of fused attention say so: "_gemm_mha_v2_0x...", "fmha_v2_flash_attention_fp16_S_40_...".
_FUSED_NAME = re.compile(r"mha|flash", re.IGNORECASE)
# The softmax of a tower's attention, or the operator that holds it, by the names that the exporter gives. CALIP's is
# too wide for such kernels.
TOWER = "tower."
_ATTENTION = re.compile(r"(tower\..*)/(?:Softmax|Attention)(_\d+)?")
_SOFTMAX_NODE = "/Softmax"
# A layer's name ends in the number of its profile, and its own.
_OF_PROFILE = re.compile(r"_myl(\d+)_\d+$")
_PRODUCT = re.compile(r"/(MatMul|Gemm|Conv|Einsum)(_\d+)?$")
# The exporter's node that dequantises the constant weight of a product, by the name of that product.
_DEQUANTISES = "/dequantise_weight"
# Layers that multiply matrices, by their kind, by their kernel, or by the name that the compiler made up for a fusion.
_HEAVY_KIND = re.compile(r"gemm|conv|correlation|matmul|matrixmultiply|fullyconnected|mha|einsum", re.IGNORECASE)
_HEAVY_KERNEL = re.compile(r"(?i:gemm|gemv|conv|matmul|mha|xmma|cutlass|einsum|cask)|Fc(?![a-z])")
# Every kernel's name ends in a hash, in which any two letters may stand.
_HASH = re.compile(r"_0x[0-9a-f]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: the compiler's.
        kind: "kgen", "gemm", "Reformat", ...
        tactic: name of the kernel, empty where it is not known.
        types: element types of its outputs and inputs: "fp16", "fp32", "int8", ...
        operands: types of the first two tensors that it reads, constants included and single numbers left out.
        nodes: of the graph, that it computes; empty where they are not known.
    """

    name: str
    kind: str
    tactic: str
    types: tuple[str, ...]
    operands: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def is_heavy(self) -> bool:
        """Whether it multiplies matrices, as far as its names tell."""
        if self.is_reformat or self.is_region:
            return False
        made_up = self.name if self.name.startswith("_") else ""
        kernels = (_HASH.sub("", text) for text in (self.tactic, made_up))
        return _HEAVY_KIND.search(self.kind) is not None or any(map(_HEAVY_KERNEL.search, kernels))

    @property
    def precision(self) -> str:
        """What it multiplies: "int8", or "int8 x fp32" where the operands differ. Empty where it is not known.

        Of an eight-bit product the output is wide; where the operands are not known, the output has to do.
        """
        kinds = sorted({kind for kind in self.operands if kind in _BY_WIDTH}, key=_BY_WIDTH.index)
        return _TIMES.join(kinds) or next(iter(self.types), "")

    @property
    def is_reformat(self) -> bool:
        """Whether it only changes the format or the type of a tensor."""
        return self.kind.lower().startswith("reformat")

    @property
    def blocks(self) -> tuple[str, ...]:
        """Attention blocks of a tower whose softmax it computes."""
        return tuple(block for _, block in self.block_nodes)

    @property
    def block_nodes(self) -> tuple[tuple[str, str], ...]:
        """Nodes that hold the softmax of an attention block, and the block of each."""
        return tuple((node, found[1]) for node in self.nodes if (found := _ATTENTION.fullmatch(node)) is not None)

    @property
    def profile(self) -> str:
        """Which profile's layer it is, by the end of its name; empty where the name does not tell."""
        found = _OF_PROFILE.search(self.name)
        return "" if found is None else found[1]

    @property
    def is_region(self) -> bool:
        """Whether it stands for several kernels that are not listed."""
        return self.kind == "Myelin" or self.name.startswith("{ForeignNode") or len(self.blocks) > 1

    @property
    def is_fused_attention(self) -> bool:
        """Whether one kernel computes softmax and both products of an attention: by its name, or by its nodes."""
        if self.is_region:
            return False
        if self.has_attention_name:
            return True
        # The operator alone says nothing: kernels that copy what it reads or gives list it too.
        blocks = [block for node, block in self.block_nodes if _SOFTMAX_NODE in node]
        return any(sum(node.startswith(f"{block}/MatMul") for node in self.nodes) >= OPERANDS for block in blocks)

    @property
    def has_attention_name(self) -> bool:
        """Whether its name is that of a kernel of fused attention."""
        name = self.name.lstrip("_").removeprefix("gemm_").removeprefix("gemv_")
        return any((_FUSED_NAME.search(self.tactic), _FUSED_NAME.match(name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What a plan's record keeps of its layers.

    Attributes:
        count: of all layers.
        heavy_types: how many layers multiply matrices of each type: see `Layer.precision`.
        products: what each product of the graph multiplies, by the name of its node; with several profiles, the widest.
        quantised: products whose constant weight is eight bits in the graph.
        fused: how many layers are fused attention.
        unfused: attention blocks of the tower whose softmax is in a layer that is no fused attention.
        untold: attention blocks in a layer that stands for several kernels: they may be fused or not.
        reformats: how many layers only change the format or type of a tensor.
        layers: name, kind, tactic and types of each.
        is_detailed: whether the list says which nodes became which layer.
    """

    count: int
    heavy_types: Mapping[str, int]
    products: Mapping[str, str]
    quantised: Sequence[str]
    fused: int
    unfused: Sequence[str]
    untold: Sequence[str]
    reformats: int
    layers: Sequence[Mapping[str, Any]]
    is_detailed: bool

    @property
    def dequantised(self) -> dict[str, str]:
        """By the name of a product with eight-bit weights, the wider type that its kernel multiplies.

        The engine dequantises these weights whenever it runs. A product that was merged with others is not in the list,
        and counts as one in eight bits.
        """
        found = {node: self.products[node] for node in self.quantised if node in self.products}
        return {node: kind for node, kind in found.items() if kind not in EIGHT_BITS}

    def as_json(self) -> dict[str, Any]:
        """For the plan's record."""
        return dataclasses.asdict(self)


def report(layers: Sequence[Layer]) -> LayerReport:
    """Count and judge layers."""
    heavy = [layer for layer in layers if layer.is_heavy and layer.precision]
    nodes = dict.fromkeys(node for layer in layers for node in layer.nodes)
    return LayerReport(
        count=len(layers),
        heavy_types=dict(Counter(layer.precision for layer in heavy)),
        products=_products(heavy),
        quantised=[node.removesuffix(_DEQUANTISES) for node in nodes if node.endswith(_DEQUANTISES)],
        fused=sum(layer.is_fused_attention for layer in layers),
        unfused=_unfused(layers),
        untold=_once(block for layer in layers if layer.is_region for block in layer.blocks),
        reformats=sum(layer.is_reformat for layer in layers),
        layers=[
            {
                "name": layer.name,
                "kind": layer.kind,
                "tactic": layer.tactic,
                "types": list(layer.types),
                "operands": list(layer.operands),
            }
            for layer in layers
        ],
        is_detailed=any(layer.nodes for layer in layers),
    )


def _unfused(layers: Sequence[Layer]) -> list[str]:
    """Blocks whose softmax is in a layer that is no fused attention; for each profile an engine has layers of its own.

    An Attention operator is more than a softmax: kernels that only copy what it gives list it as well.
    """
    fused = {(layer.profile, node) for layer in layers if layer.is_fused_attention for node in layer.nodes}
    apart = [layer for layer in layers if not layer.is_region | layer.is_fused_attention]
    return _once(
        block
        for layer in apart
        for node, block in layer.block_nodes
        if _SOFTMAX_NODE in node or (layer.profile, node) not in fused
    )


def _once(names: Iterable[str]) -> list[str]:
    """Each name once: an engine has every layer again for every profile."""
    return list(dict.fromkeys(names))


def _products(heavy: Sequence[Layer]) -> dict[str, str]:
    """What each product multiplies.

    A kernel of fused attention also lists the products before it, whose scales it applies: theirs are the other layers.
    """
    found: dict[str, str] = {}
    for of_attention in (False, True):
        claimed = frozenset(found)
        for layer in heavy:
            if layer.has_attention_name is of_attention:
                for node in layer.nodes:
                    if _PRODUCT.search(node) and node not in claimed:
                        found[node] = max(found.get(node, layer.precision), layer.precision, key=_width)
    return found


def _width(precision: str) -> tuple[int, int]:
    kinds = precision.split(_TIMES)
    return max(_BY_WIDTH.index(kind) if kind in _BY_WIDTH else 0 for kind in kinds), -len(kinds)
