"""One configuration of the sweep, in this process: built, exported, run, compared."""

import dataclasses
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import torch
from torch.nn import functional

from benchmarks.sweep_models import fewer_timm_layers, with_fewer_layers
from calipso_bench.worker import peak_rss_bytes
from calipso_export import ExportConfig
from calipso_export.classifier import ClassifierModule, OpenModule
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.models import LoadedModel, load_model
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import trace
from calipso_export.steps.write import MAX_EMBEDDED_BYTES
from calipso_export.towers.text import TextTower
from calipso_runtime.errors import ModelError

BATCHES = (1, 2, 5)
# Of every output against open_clip's: the largest difference over the largest value.
MOST = 1e-4
TEXTS = 5
SEED = 0
# What `--text-weights` stands for where no text tower can be built: features of classes that there are none of.
CLASSES = 10
Float32 = npt.NDArray[np.float32]


class BothTowers(OpenModule):
    """As an open-vocabulary bundle has them, with the image's spatial tokens, where they are defined, as well."""

    def forward(self, image: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `OpenModule.forward`."""
        pooled, tokens = self.tower(image)
        embedding = functional.normalize(pooled, dim=-1)
        text = functional.normalize(self.tower_text(token_ids), dim=-1)
        logits = embedding @ (text * self.scale).T + self.bias
        return logits, embedding, *([] if tokens is None else [functional.normalize(tokens, dim=-1)]), text


def swept(name: str, layers: int | None) -> dict[str, Any]:
    """What became of one configuration, as JSON types."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            row, inputs, expected = written(name, layers, path)
        except ModelError as error:
            return {"status": "refused", "reason": str(error)}
        # ONNX Runtime keeps weights of its own: PyTorch's are gone by now.
        gc.collect()
        row |= judged(compared(path, inputs, expected))
    return {**row, "seconds": round(time.perf_counter() - started, 1), "peak_rss_bytes": peak_rss_bytes()}


def loaded(name: str, layers: int | None, folder: Path) -> tuple[LoadedModel, str | None]:
    """The model with random weights; without its text tower, and why, where that needs files of a hub."""
    source = name if layers is None else str(with_fewer_layers(name, layers, folder))
    config = ExportConfig(model=source, random_init=SEED, classes=("a", "b"), output=folder / "unused")

    def build(config: ExportConfig) -> LoadedModel:
        if layers is None:
            return load_model(config, encodes_text=False)
        with fewer_timm_layers(name, layers):
            return load_model(config, encodes_text=False)

    try:
        return build(config), None
    except ModelError as error:
        return build(dataclasses.replace(config, text_weights=folder / "unused.npz")), str(error)


@torch.no_grad()
def written(
    name: str, layers: int | None, path: Path
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], dict[str, Float32]]:
    """Export what there is of the model into a file: about it, its inputs, and what open_clip says of them."""
    folder = path.parent
    model, why_no_text = loaded(name, layers, folder)
    why_no_tokens = model.why_no_tokens
    tower = model.tower(model.visual, with_tokens=why_no_tokens is None)
    outputs = ("logits", "embedding", *(() if why_no_tokens else ("tokens",)))
    config = ExportConfig(model=model.name, random_init=SEED, classes=("a", "b"), output=folder / "unused")
    config = dataclasses.replace(config, outputs=outputs)
    torch.manual_seed(SEED)
    images = torch.randn(max(BATCHES), *model.front_end.shape)
    inputs = {"image": images.numpy()}
    if why_no_text is None:
        token_ids = made_up_tokens(model)
        text = functional.normalize(TextTower.reference(model.module, token_ids), dim=-1)
        inputs["token_ids"] = token_ids.numpy()
        both = BothTowers(tower, TextTower(model.module), scale=model.scale, bias=model.bias)
        graph = trace(both.eval(), model, config, token_ids=token_ids)
    else:
        text = functional.normalize(torch.randn(CLASSES, int(model.architecture["embed_dim"])), dim=-1)
        head = ZeroShotHead(text, scale=model.scale, bias=model.bias)
        graph = trace(ClassifierModule(tower, head, outputs=outputs).eval(), model, config)
    expected = reference(model, images, text, with_tokens=why_no_tokens is None)
    if why_no_text is None:
        expected["text_embedding"] = text.numpy()
    graph = optimise(graph).portable
    row = {
        "status": "exported",
        "family": model.tower.family,
        "nodes": sum(1 for _ in graph.graph),
        "why_no_calip": why_no_tokens,
        "why_no_text": why_no_text,
    }
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    ir.save(graph, path, external_data=f"{path.name}.data" if size > MAX_EMBEDDED_BYTES else None)
    return row, inputs, expected


def judged(worst: dict[str, float]) -> dict[str, Any]:
    """What a row says of the largest errors."""
    if max(worst.values()) <= MOST and all(map(np.isfinite, worst.values())):
        return {"worst": worst}
    return {"status": "differs", "reason": f"the file is off by {max(worst.values()):.1e}", "worst": worst}


def made_up_tokens(model: LoadedModel) -> torch.Tensor:
    """int64 [N,L]: texts of several lengths, each with the end that its tower looks for, padded."""
    module: Any = model.module
    text = getattr(module, "text", module)
    length = int(text.context_length)
    rows = int(text.token_embedding.num_embeddings)
    end = rows - 1
    if getattr(text, "pool_type", getattr(text, "text_pool_type", "argmax")) == "eos":
        end = int(getattr(text, "eos_id", getattr(text, "text_eos_id", end)))
    generator = torch.Generator().manual_seed(SEED)
    token_ids = torch.full((TEXTS, length), int(getattr(text, "pad_id", 0) or 0))
    for row, own in enumerate(np.linspace(2, length - 1, TEXTS).astype(int)):
        drawn = torch.randint(1, rows - 2, (int(own),), generator=generator)
        token_ids[row, :own] = torch.where(drawn == end, 1, drawn)
        token_ids[row, own] = end
    return token_ids


def reference(model: LoadedModel, images: torch.Tensor, text: torch.Tensor, *, with_tokens: bool) -> dict[str, Float32]:
    """What open_clip says, a picture at a time."""
    embedding = functional.normalize(torch.cat([model.encode_image(each[None]) for each in images]), dim=-1)
    answers = {"logits": model.scale * embedding @ text.T + model.bias, "embedding": embedding}
    if with_tokens:
        tokens = torch.cat([model.tokens(each[None]) for each in images])
        answers["tokens"] = functional.normalize(tokens, dim=-1)
    return {name: values.numpy() for name, values in answers.items()}


def compared(path: Path, inputs: dict[str, Any], expected: dict[str, Float32]) -> dict[str, float]:
    """The largest difference of each output over its largest value, over all batches."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    worst = dict.fromkeys(expected, 0.0)
    for batch in BATCHES:
        given = {**inputs, "image": inputs["image"][:batch]}
        answers = session.run(list(expected), given)
        for (name, wanted), found in zip(expected.items(), answers, strict=True):
            own = wanted if name == "text_embedding" else wanted[:batch]
            worst[name] = max(worst[name], float(np.abs(found - own).max() / np.abs(own).max()))
    return worst
