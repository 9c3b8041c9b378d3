"""What the exporter writes passes the lint for its declared targets: every tower, head, precision and opset."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from export_samples import CLASSES
from onnx import checker
from precision_samples import lowered

from calipso_export import ExportConfig
from calipso_export.choices import OPSETS, OUTPUTS
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.tip_adapter import TipAdapter
from calipso_export.lint import ERROR, declared, tensorrt_findings
from calipso_export.models import LoadedModel
from calipso_export.precision import PRECISIONS
from calipso_export.precision.islands import TOWER
from calipso_export.reference import HeadTensors
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import classifier_module, trace
from calipso_runtime.errors import UsageError

CASES = [("tiny_vit", "both", opset) for opset in OPSETS] + [
    ("tiny_vit", "neither", 20),
    ("tiny_vit", "calip", 20),
    ("tiny_resnet", "cache", 20),
    ("tiny_resnet", "both", 22),
]
# At opset 20 a convolution takes no bfloat16 in ONNX.
IMPOSSIBLE = {("tiny_resnet", 20, "bf16")}
FP32_PRODUCTS = {"its first product is of fp32; its second product is of fp32"}


def unit(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.nn.functional.normalize(torch.randn(rows, 32, generator=generator), dim=1)


def heads_of(name: str) -> HeadTensors:
    # One key, two and four: classes of several sizes become blocks, which are put back into order.
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2])
    cache = TipAdapter(keys=unit(len(labels)), labels=labels, alpha=1.5, beta=5.5)
    return HeadTensors(
        text=unit(len(CLASSES)),
        few_shot=cache if name in ("cache", "both") else None,
        calip=CalipParameters(b2=1.0, b3=0.1) if name in ("calip", "both") else None,
        centred=name == "both",
    )


@pytest.mark.slow
@pytest.mark.parametrize(("model", "heads", "opset"), CASES)
def test_every_precision_of_an_export_is_taken_by_its_declared_targets(
    vit: LoadedModel, resnet: LoadedModel, model: str, heads: str, opset: int
) -> None:
    loaded = vit if model == "tiny_vit" else resnet
    outputs = OUTPUTS if heads in ("calip", "both") else ("logits", "embedding")
    config = ExportConfig(
        model="unused", classes=CLASSES, output=Path("unused"), random_init=0, opset=opset, outputs=outputs
    )
    fp32 = optimise(trace(classifier_module(loaded, heads_of(heads), outputs), loaded, config)).portable

    errors, unfused = {}, {}
    for name, precision in PRECISIONS.items():
        if precision.min_opset > opset:
            continue
        try:
            graph = ir.to_proto(lowered(fp32, precision).portable)
        except UsageError:
            continue
        checker.check_model(graph)
        found = tensorrt_findings(graph, Path(), targets=declared(opset))
        errors[name] = [str(finding) for finding in found if finding.severity == ERROR]
        unfused[name] = {finding.wrong for finding in found if finding.where.startswith(f"node {TOWER}")}

    possible = {name for name, precision in PRECISIONS.items() if precision.min_opset <= opset}
    assert errors == {name: [] for name in possible if (model, opset, name) not in IMPOSSIBLE}
    # What docs/lint.md says of the towers' attention.
    assert unfused == {name: FP32_PRODUCTS if PRECISIONS[name].rest == ir.DataType.FLOAT else set() for name in errors}
