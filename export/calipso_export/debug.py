"""Compares a bundle's graph with fp32, node by node: where a low precision loses its answers."""

from html import escape
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calipso_export.defaults import give_defaults
from calipso_export.photos import check_readable
from calipso_export.pixels import detach
from calipso_export.precision.layers import LayerError, layer_errors
from calipso_export.progress import Progress
from calipso_export.rebuild import rebuild
from calipso_export.report_precision import layer_plot, number
from calipso_export.report_table import table
from calipso_export.steps.gather import Pictures, evenly, read_pictures
from calipso_export.steps.optimise import optimise
from calipso_export.steps.trace import traced
from calipso_export.steps.verify import edge_cases
from calipso_runtime.bundle import open_bundle
from calipso_runtime.manifest import manifest_of_metadata

_MOST_PICTURES, _BATCH = 16, 4


def debug(
    bundle: Path, *, data: Path | None, checkpoint: Path | None, model: str | None, progress: Progress
) -> list[LayerError]:
    """Trace the bundle's model again in fp32, and hold its graph against that.

    Args:
        bundle: the bundle.
        data: a folder of pictures, of which up to 16 are used; edge cases where None.
        checkpoint: the weights, needed where the bundle was exported from a file.
        model: the model's configuration file, needed where the bundle was exported from one.
        progress: told about long work.

    Returns:
        Every node of float output, in the graph's order.

    Raises:
        ModelError: the weights given are not those that the bundle was made from.
        CalipsoError: whatever loading the bundle or the model raises.
    """
    path = open_bundle(bundle).model_path
    saved = ir.load(path)
    manifest = manifest_of_metadata(saved.metadata_props, source=str(path))
    rebuilt = rebuild(bundle, manifest, checkpoint=checkpoint, model=model, progress=progress, encode_text=False)
    front_end = rebuilt.model.front_end
    pictures = Pictures(pictures=tuple(edge_cases(front_end)), source="edge cases")
    if data is not None:
        pictures = read_pictures(data, manifest.labels, front_end)
        check_readable([str(each.content) for each in pictures.pictures], front_end, progress)
    progress("tracing the graph in fp32", 0, 1)
    anew = traced(rebuilt.model, rebuilt.heads, rebuilt.config, rebuilt.given)
    detach(saved)
    original = optimise(anew.graph).portable
    if anew.head is not None:
        give_defaults(saved.graph, anew.head.arrays())
    progress("tracing the graph in fp32", 1, 1)
    chosen = [pictures.pictures[index] for index in evenly(len(pictures.pictures), _MOST_PICTURES)]
    images = np.stack([front_end.given(each.content, name=each.name) for each in chosen])
    progress("comparing layers", 0, 1)
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    errors = layer_errors(original, saved, batches)
    progress("comparing layers", 1, 1)
    return errors


def debug_html(title: str, errors: list[LayerError]) -> str:
    """The table and a plot, as one page without dependencies."""
    rows = [
        (row.node, row.operator, row.kind, number(row.error), number(row.own_error), f"{row.peak:.3g}")
        for row in errors
    ]
    plot = layer_plot([(row.node, row.error, row.own_error) for row in errors])
    columns = ("node", "operator", "type", "error", "of its own", "largest value")
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<h1>{escape(title)}</h1>{plot}{table(columns, rows)}</html>\n"
    )
