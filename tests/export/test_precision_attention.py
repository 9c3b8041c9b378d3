"""The towers' attention in 16 bits: nothing stands between its nodes, and islands of fp32 would change no bit of it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from export_samples import CLASSES, RESNET, VIT, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from precision_samples import graph_of, lowered, node, node_named

from calipso_export import ExportConfig
from calipso_export.choices import OUTPUTS
from calipso_export.heads.calip import CalipParameters
from calipso_export.lint import tensorrt_findings
from calipso_export.models import LoadedModel, load_model
from calipso_export.precision import PRECISIONS
from calipso_export.precision.half import to_half, type_io
from calipso_export.precision.islands import TOWER
from calipso_export.precision.run import answering
from calipso_export.reference import HeadTensors
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import classifier_module, trace
from calipso_runtime.inputs import tensor

ROOT = Path(__file__).resolve().parents[2]
SHIPPED, SHIPPED_JOINT = ROOT / "models" / "shapes-vit", 96
HALF = [name for name, precision in PRECISIONS.items() if precision.rest != ir.DataType.FLOAT]
KINDS = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16]
# Opset 22 has every precision of every tower.
OPSET = 22
Tower = tuple[Mapping[str, Any], Mapping[str, Any], int]
# Configuration, changes to the vision tower, attentions.
TOWERS: Mapping[str, Tower] = {
    "class token": (VIT, {}, 2),
    "average pool": (VIT, {"pool_type": "avg"}, 2),
    "layer scale": (VIT, {"ls_init_value": 0.3}, 2),
    "wide heads, not of a power of two": (VIT, {"width": 80, "head_width": 40}, 2),
    "attention pool": (RESNET, {}, 1),
}


def fp32_graph(model: LoadedModel, joint: int, *, tokens: bool) -> ir.Model:
    """The fp32 graph of an export; with tokens CALIP reads them, without a ViT's last block is pruned."""
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(len(CLASSES), joint, generator=generator), dim=1)
    calip = CalipParameters(b2=1.0, b3=0.1) if tokens else None
    outputs = OUTPUTS if tokens else ("logits", "embedding")
    config = ExportConfig(
        model="unused", classes=CLASSES, output=Path("unused"), random_init=0, opset=OPSET, outputs=outputs
    )
    module = classifier_module(model, HeadTensors(text=text, calip=calip, centred=tokens), outputs)
    return optimise(trace(module, model, config)).portable


def attention_softmaxes(model: ir.Model) -> list[ir.Node]:
    return [each for each in model.graph if each.op_type == "Softmax" and str(each.name).startswith(TOWER)]


def with_islands(model: ir.Model) -> dict[str, str]:
    """What pins every attention's Softmax to fp32: a cast before it, and one behind."""
    return {str(each.name): "an island" for each in attention_softmaxes(model)}


def bits(answers: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in answers.items()}


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [True, False], ids=["with tokens", "without tokens"])
@pytest.mark.parametrize(("document", "vision", "count"), TOWERS.values(), ids=TOWERS)
def test_nothing_stands_between_the_nodes_of_a_towers_attention(
    tmp_path: Path, document: Mapping[str, Any], vision: Mapping[str, Any], count: int, tokens: bool
) -> None:
    path = write_model(tmp_path / f"{tmp_path.name}.json", document, vision=vision)
    config = ExportConfig(model=str(path), classes=CLASSES, output=tmp_path, random_init=3)
    fp32 = fp32_graph(load_model(config), document["embed_dim"], tokens=tokens)

    found, warned = {}, {}
    for name in HALF:
        graphs = lowered(fp32, PRECISIONS[name])
        found[name] = [_neighbours(each) for each in attention_softmaxes(graphs.portable)]
        findings = tensorrt_findings(ir.to_proto(graphs.portable), Path())
        warned[name] = [str(each) for each in findings if each.where.startswith(f"node {TOWER}")]

    kinds = {name: PRECISIONS[name].rest for name in HALF}
    assert found == {name: [("MatMul", kind, "Softmax", kind, ["MatMul"])] * count for name, kind in kinds.items()}
    assert warned == {name: [] for name in HALF}


def _neighbours(softmax: ir.Node) -> tuple[Any, ...]:
    scores, weights = softmax.inputs[0], softmax.outputs[0]
    assert scores is not None
    maker = scores.producer()
    assert maker is not None
    readers = [use.node.op_type for use in weights.uses()]
    return maker.op_type, scores.dtype, softmax.op_type, weights.dtype, readers


def attention_of(nodes: Sequence[onnx.NodeProto]) -> ir.Model:
    """Queries, keys and values [batch, heads, tokens, 16] out of one input, and what is made of them."""
    arrays = {name: np.random.default_rng(place).standard_normal((16, 16)) for place, name in enumerate("abc")}
    made = [node("MatMul", ["x", f"w_{each}"], name) for each, name in zip("abc", ("q", "k", "v"), strict=True)]
    made.append(node("Transpose", ["k"], "turned", perm=[0, 1, 3, 2]))
    weights = {f"w_{name}": array.astype(np.float32) for name, array in arrays.items()}
    return graph_of([*made, *nodes], weights, shape=["batch", 2, "tokens", 16])


SCORES, WEIGHTED = node("MatMul", ["q", "turned"], "scores"), node("MatMul", ["p", "v"], "y")
PLAIN = [SCORES, node("Softmax", ["scores"], "p", axis=-1), WEIGHTED]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 3), tokens=st.integers(1, 70), reach=st.floats(2**-8, 2**8), seed=st.integers(0, 1 << 32))
def test_an_island_around_an_attentions_softmax_changes_no_bit(
    *, kind: ir.DataType, batch: int, tokens: int, reach: float, seed: int
) -> None:
    model = attention_of(PLAIN)
    x = (np.random.default_rng(seed).standard_normal((batch, 2, tokens, 16)) * reach).astype(np.float32)

    answers, casts = [], []
    for pinned in ((), with_islands(model)):
        half = model.clone()
        to_half(half.graph, kind, opset=18, pinned=pinned)
        type_io(half.graph, ir.DataType.FLOAT)
        casts.append(sum(each.op_type == "Cast" for each in half.graph))
        with answering(half) as answer:
            answers.append(bits(answer(x)))

    assert answers[0] == answers[1]
    assert casts[1] == casts[0] + 2


@pytest.mark.parametrize(
    "nodes",
    [
        [SCORES, node("Relu", ["scores"], "r"), node("Softmax", ["r"], "p", axis=-1), WEIGHTED],
        [SCORES, node("Softmax", ["scores"], "s", axis=-1), node("Relu", ["s"], "p"), WEIGHTED],
        [*PLAIN[:2], node("MatMul", ["p", "v"], "m"), node("MatMul", ["p", "v"], "n"), node("Add", ["m", "n"], "y")],
        [SCORES, node("Softmax", ["scores"], "p", axis=-1, layer="calip"), WEIGHTED],
        [SCORES, PLAIN[1], node("MatMul", ["p", "v"], "y", layer="calip")],
        [node("MatMul", ["q", "turned"], "scores", layer="calip"), *PLAIN[1:]],
    ],
    ids=["no product before", "no product behind", "read twice", "the head's", "read by the head", "of the head"],
)
def test_any_other_softmax_is_an_island_of_fp32(nodes: list[onnx.NodeProto]) -> None:
    model = attention_of(nodes)

    to_half(model.graph, ir.DataType.FLOAT16, opset=18)

    (softmax,) = [each for each in model.graph if each.op_type == "Softmax"]
    assert {value.dtype for value in (softmax.inputs[0], softmax.outputs[0])} == {ir.DataType.FLOAT}


def test_a_softmax_that_is_pinned_stays_in_fp32() -> None:
    model = attention_of(PLAIN)

    reasons = to_half(model.graph, ir.DataType.FLOAT16, opset=18, pinned=["tower.p/Softmax"])

    assert reasons == {"tower.p/Softmax": "pinned"}
    assert node_named(model, "tower.p/Softmax").outputs[0].dtype == ir.DataType.FLOAT


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of every class of the drawn world, which the shipped model was trained on, three."""
    folder = tmp_path_factory.mktemp("drawn") / "task"
    command = [sys.executable, str(ROOT / "examples/shapes/draw.py"), "--out", str(folder)]
    subprocess.run([*command, "--shots", "1", "--held-out", "2"], check=True, capture_output=True)
    return sorted(folder.rglob("*.png"))


@pytest.mark.slow
def test_islands_around_the_shipped_models_softmaxes_change_no_bit_of_any_answer(pictures: list[Path]) -> None:
    config = ExportConfig(
        model=str(SHIPPED / "shapes-vit.json"),
        checkpoint=SHIPPED / "shapes-vit.safetensors",
        classes=CLASSES,
        output=Path("unused"),
    )
    model = load_model(config)
    fp32 = fp32_graph(model, SHIPPED_JOINT, tokens=True)
    images = np.stack([tensor(path, model.preprocess, name=path.name) for path in pictures])

    answers: dict[str, list[dict[str, bytes]]] = {}
    for name in HALF:
        for pinned in ({}, with_islands(fp32)):
            with answering(lowered(fp32, PRECISIONS[name], pinned=pinned).portable) as answer:
                answers.setdefault(name, []).append(bits(answer(images)))

    assert len(pictures) == 90
    assert len(with_islands(fp32)) == 6
    for name, (without, islands) in answers.items():
        assert without == islands, name
