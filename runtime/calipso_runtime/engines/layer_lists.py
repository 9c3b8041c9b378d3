"""Reads a compiler's list of an engine's layers: the JSON of TensorRT's inspector, or the text of a verbose build log.

TensorRT's inspector answers JSON: `{"Layers": [{"Name", "LayerType", "TacticName", "Inputs", "Constants", "Outputs",
"Metadata"}, ...]}`, where a tensor has a "Format/Datatype" ("Half", "Row major linear FP16 format") and the metadata
lists the nodes of the graph that became the layer: "[ONNX Layer: block.0.attn/Softmax]". Without detailed verbosity a
layer is only a name.

With detailed verbosity the builder of TensorRT for RTX logs the same list as text, one layer a line, without a GPU:

    Layers:
    Name: mm_myl0_2, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [8,64], ..., Datatype: Int8, Format: ... }],
        Constants: [...], Outputs: [...], TacticName: ..., StreamId: 0, Metadata: [ONNX Layer: mm]
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from calipso_runtime.engines.layers import OPERANDS, Layer

LISTING_START = "Layers:"
# As formats and types are written in TensorRT 8.2 to 11: the longer names first, for "FP16" is in "BF16" too.
_TYPES: tuple[tuple[str, str], ...] = (
    (r"bf16|bfloat16", "bf16"),
    (r"fp8|e4m3", "fp8"),
    (r"fp4|e2m1", "fp4"),
    (r"int8", "int8"),
    (r"fp16|half", "fp16"),
    (r"fp32|float", "fp32"),
    (r"int64|int32|bool|uint8", "integer"),
)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_LINE = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>.*?), Inputs: \[(?P<Inputs>.*)\], "
    r"Constants: \[(?P<Constants>.*)\], Outputs: \[(?P<Outputs>.*)\], TacticName: (?P<TacticName>.*?), "
    r"StreamId: .*?, Metadata: ?(?P<Metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: .*?, Dimensions: \[(?P<Dimensions>[-\d,]*)\].*?, Datatype: (?P<Datatype>\w+)")


def read_layers(information: str) -> tuple[Layer, ...]:
    """Read what TensorRT's inspector answers.

    Args:
        information: JSON.

    Raises:
        ValueError: it is no such JSON.
    """
    document = json.loads(information)
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        message = "the layer information has no list of Layers"
        raise ValueError(message)  # noqa: TRY004 - about content, as json's own errors
    return tuple(_layer(each) for each in document["Layers"])


def read_listing(message: str) -> tuple[Layer, ...]:
    """Read the message of a verbose build log that lists the layers.

    Args:
        message: begins with "Layers:".

    Raises:
        ValueError: it begins with something else.
    """
    first, *lines = message.splitlines() or [""]
    if first.strip() != LISTING_START:
        problem = f"the layer list begins with {first[:40]!r}, expected {LISTING_START!r}"
        raise ValueError(problem)
    matches = (_LINE.fullmatch(line) for line in lines)
    return tuple(_layer(_entry(match)) for match in matches if match is not None)


def _entry(line: re.Match[str]) -> dict[str, Any]:
    """Turn a line of the text into an entry of the JSON."""
    entry: dict[str, Any] = line.groupdict()
    for side in ("Inputs", "Constants", "Outputs"):
        entry[side] = [
            {
                "Dimensions": [int(size) for size in tensor["Dimensions"].split(",") if size],
                "Datatype": tensor["Datatype"],
            }
            for tensor in _TENSOR.finditer(entry[side])
        ]
    return entry


def _layer(entry: object) -> Layer:
    if not isinstance(entry, dict):
        return Layer(name=str(entry), kind="", tactic="", types=(), operands=(), nodes=())
    found = {side: _tensors(entry, side) for side in ("Outputs", "Inputs", "Constants")}
    types = [_tensor_type(tensor) for side in ("Outputs", "Inputs") for tensor in found[side]]
    # Factors of a product that are one number are its scales; an older TensorRT lists weights apart.
    factors = [_tensor_type(each) for each in (*found["Inputs"], *found["Constants"]) if not _is_scalar(each)]
    weights = entry.get("Weights")
    if isinstance(weights, dict):
        factors.insert(1, _type(str(weights.get("Type", ""))))
    return Layer(
        name=str(entry.get("Name", "")),
        kind=str(entry.get("LayerType", "")),
        tactic=str(entry.get("TacticName", "")),
        types=tuple(dict.fromkeys(each for each in types if each)),
        operands=tuple(each for each in factors if each)[:OPERANDS],
        nodes=tuple(_NODE.findall(str(entry.get("Metadata") or ""))),
    )


def _tensors(entry: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    return [tensor for tensor in entry.get(side) or () if isinstance(tensor, dict)]


def _is_scalar(tensor: Mapping[str, Any]) -> bool:
    return tensor.get("Dimensions") in ([], [1])


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    return _type(str(tensor.get("Format/Datatype") or tensor.get("Datatype") or ""))


def _type(text: str) -> str:
    lowered = text.lower()
    return next((name for pattern, name in _TYPES if re.search(pattern, lowered)), "")
