"""Write: the graphs as sealed files, the manifest inside, the weights once."""

import dataclasses
import importlib.metadata
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from calipso_export.choices import EMBED
from calipso_export.config import ExportConfig
from calipso_export.defaults import without_defaults
from calipso_export.heads.few_shot import FoldedHead
from calipso_export.lint import declared
from calipso_export.model_names import architecture_of
from calipso_export.models import LoadedModel
from calipso_export.progress import Progress
from calipso_export.reference import HeadTensors
from calipso_export.shared_weights import refer_to
from calipso_export.split import part
from calipso_export.step import Made, WorkFolder
from calipso_export.steps.assess import Assessed
from calipso_export.steps.lower import Lowering
from calipso_export.steps.optimise import Optimised
from calipso_export.steps.probe import TokenizerRecord
from calipso_export.steps.trace import Traced
from calipso_export.steps.tune import HeadRecord
from calipso_export.templates import Prompts
from calipso_runtime.bundle import HEAD_FILE
from calipso_runtime.graph_file import (
    DIGEST_PLACEHOLDER,
    METADATA_DATA_DIGEST,
    METADATA_DIGEST,
    METADATA_MANIFEST,
    METADATA_RUN_BATCH,
    MODEL_FILE,
    ORT_FILES,
    TEXT_FILE,
    seal_model,
    weights_file,
)
from calipso_runtime.hashes import sha256_of
from calipso_runtime.head.file import write_head
from calipso_runtime.manifest import EMBEDDING, TEXT_EMBEDDING, Manifest, canonical
from calipso_runtime.pixel_input import OP

# Protobuf cannot serialise more than 2 GiB in one message; the graph itself needs some of it.
MAX_EMBEDDED_BYTES = 2**31 - 64 * 2**20
# Measured on ViT-B/32 and B/16 (docs/performance.md): larger products leave the caches.
_BEST_ROWS = 400
# Of towers that work on maps; measured on five of them: one at a time and eight at once are both slower.
_BEST_MAPS = 2
# Where the towers are apart: which outputs each graph gives. For ONNX Runtime they always are: it computes the whole
# of a graph, whatever is asked of it (only_execute_path_to_fetches is for its training builds, onnxruntime#16013).
_Outputs = dict[str, tuple[str, ...] | None]
_WHOLE: _Outputs = {MODEL_FILE: None}
_TOWERS: _Outputs = {MODEL_FILE: (EMBEDDING,), TEXT_FILE: (TEXT_EMBEDDING,)}
_TOOLS = ("calipso", "torch", "open_clip_torch", "onnx", "onnxscript", "onnx-ir", "numpy", "pillow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """The written graphs, and the part of the manifest that they carry.

    Attributes:
        paths: of the portable graphs: of all, or of the image tower and the text tower.
        manifest: what they carry.
    """

    paths: tuple[Path, ...]
    manifest: Manifest

    @property
    def path(self) -> Path:
        """Of the graph that takes pictures."""
        return self.paths[0]

    @property
    def ort_path(self) -> Path:
        """The same for ONNX Runtime."""
        return self.path.with_name(ORT_FILES[self.path.name])


class WriteGraphs:
    """Write the portable graph with its weights, and ONNX Runtime's over the same bytes."""

    requires: ClassVar[tuple[type, ...]] = (
        ExportConfig,
        WorkFolder,
        LoadedModel,
        Prompts,
        HeadTensors,
        HeadRecord,
        Assessed,
        Traced,
        Optimised,
        Lowering,
    )
    ensures: ClassVar[tuple[type, ...]] = (Graph,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        progress("writing the graphs", 0, 2)
        lowering, head = made[Lowering], made[Traced].head
        if head is not None:
            write_head(made[WorkFolder].path / HEAD_FILE, head)
        graphs, folder = lowering.graphs, made[WorkFolder].path
        config, front_end = made[ExportConfig], made[LoadedModel].front_end
        parts = _TOWERS if config.head_mode == EMBED else _WHOLE
        portable = {name: part(graphs.portable, outputs) for name, outputs in parts.items()}
        portable[MODEL_FILE] = front_end.attached(portable[MODEL_FILE])
        text = {"text": _describe(portable[TEXT_FILE])} if TEXT_FILE in portable else {}
        manifest = _manifest(
            made,
            {
                **_describe(portable[MODEL_FILE]),
                **text,
                **_describe_head(made[Traced].few_shot),
                "targets": _targets(config),
                "forms": {"portable": {**made[Optimised].forms, **graphs.half_forms}, "ort": dict(graphs.ort_forms)},
                "precision": lowering.as_json(),
            },
        )
        carried = canonical(manifest.core())
        rows = {MODEL_FILE: made[Traced].rows, TEXT_FILE: made[Traced].text_rows}
        for name, graph in portable.items():
            save(graph, folder / name, manifest=carried)
        progress("writing the graphs", 1, 2)
        for name, outputs in (_TOWERS if config.takes_labels else _WHOLE).items():
            weights = folder / (name if name in portable else MODEL_FILE)
            ort, ort_path = part(graphs.ort, outputs), folder / ORT_FILES[name]
            ort = front_end.attached(ort, casts_first=False) if name == MODEL_FILE else ort
            batch = run_batch(rows[name], maps=front_end.images)
            save_over(ort, ort_path, weights=weights, manifest=carried, run_batch=batch)
        made.add(Graph(paths=tuple(folder / name for name in parts), manifest=manifest))
        progress("writing the graphs", 2, 2)


def save(graph: ir.Model, path: Path, *, manifest: str) -> None:
    """Write and seal one file; beyond 2 GB the weights go to one file beside it."""
    graph = without_defaults(graph)
    total = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    external = weights_file(path).name if total > MAX_EMBEDDED_BYTES else None
    _set_metadata(graph, manifest, has_data=external is not None)
    ir.save(graph, path, external_data=external)
    seal_model(path)


def save_over(graph: ir.Model, path: Path, *, weights: Path, manifest: str, run_batch: int) -> None:
    """Write and seal a graph whose weights lie in another graph's file, or in the data beside that one.

    Args:
        graph: what to write; its large initializers become references.
        path: where.
        weights: a graph that holds the same bytes, in the same folder.
        manifest: to carry.
        run_batch: how many pictures the graph runs at once fastest.
    """
    graph = without_defaults(graph)
    refer_to(graph.graph, weights)
    _set_metadata(graph, manifest, has_data=True, run_batch=run_batch)
    ir.save(graph, path)
    seal_model(path)


def run_batch(rows: int | None, *, maps: int) -> int:
    """How many pictures ONNX Runtime runs at once fastest, of so many rows each, or of so many maps without rows."""
    return max(1, _BEST_MAPS // maps if rows is None else round(_BEST_ROWS / rows))


def _set_metadata(graph: ir.Model, manifest: str, *, has_data: bool, run_batch: int | None = None) -> None:
    graph.metadata_props.clear()
    if run_batch is not None:
        graph.metadata_props[METADATA_RUN_BATCH] = str(run_batch)
    graph.metadata_props[METADATA_MANIFEST] = manifest
    if has_data:
        graph.metadata_props[METADATA_DATA_DIGEST] = DIGEST_PLACEHOLDER.decode()
    # Last, so that it is near the end of the file, where a reader looks for it first.
    graph.metadata_props[METADATA_DIGEST] = DIGEST_PLACEHOLDER.decode()


def _manifest(made: Made, graph: dict[str, Any]) -> Manifest:
    config, model, heads = made[ExportConfig], made[LoadedModel], made[HeadTensors]
    return Manifest(
        labels=config.classes,
        preprocess=model.preprocess,
        input=model.front_end.as_json(),
        precision=made[Lowering].precision.name,
        model={
            "name": model.name,
            "config": None if architecture_of(config.model) is None else Path(config.model).name,
            "family": model.tower.family,
            "embed_dim": heads.text.shape[1],
            "logit_scale": model.scale,
            "logit_bias": model.bias,
            "quick_gelu": model.quick_gelu,
            "preprocess_from": model.preprocess_source,
            "weights": model.weights,
        },
        prompts=made[Prompts].as_json(),
        head={**made[HeadRecord].document, **_head_file(made), "seed": config.seed, "centred": heads.centred},
        graph=graph,
        confidence=made[Assessed].document,
        tokenizer=made[TokenizerRecord].document if TokenizerRecord in made else {},
        tools={name: _version(name) for name in _TOOLS} | {"python": platform.python_version()},
    )


def _targets(config: ExportConfig) -> list[str]:
    """The releases of TensorRT that the graph is made for; none where it resizes by an operator that they lack."""
    taken = config.pixel_input
    return [] if taken is not None and taken.resize == OP else list(declared(config.opset))


def _head_file(made: Made) -> dict[str, Any]:
    """Where the head is an input: what binds its file to the graph."""
    if made[Traced].head is None:
        return {"kind": made[ExportConfig].head_mode}
    return {"kind": made[ExportConfig].head_mode, "sha256": sha256_of(made[WorkFolder].path / HEAD_FILE)}


def _describe(graph: ir.Model) -> dict[str, Any]:
    def values(named: Any) -> dict[str, dict[str, Any]]:
        return {
            value.name: {
                "dtype": value.dtype.numpy().name,
                "shape": [size if isinstance(size, int) else str(size) for size in value.shape],
            }
            for value in named
        }

    operators = Counter(node.op_type for node in graph.graph)
    return {
        "opset": graph.opset_imports[""],
        "inputs": values(graph.graph.inputs),
        "outputs": values(graph.graph.outputs),
        "nodes": sum(operators.values()),
        "operators": json.loads(json.dumps(dict(sorted(operators.items())))),
    }


def _describe_head(head: FoldedHead | None) -> dict[str, Any]:
    """What it takes to unfold the few-shot head again; readers of the first bundles expect both names of a cache."""
    return {"cache_layout": [], "cache_order": None, **({} if head is None else head.describe())}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
