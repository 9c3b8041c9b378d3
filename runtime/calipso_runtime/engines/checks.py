"""What is checked on a plan that was just built: types, fused attention, answers, and how fast it is."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calipso_runtime.backends import Backend, TensorInfo
from calipso_runtime.bundle import Bundle
from calipso_runtime.engines.layers import EIGHT_BITS, TOWER, LayerReport
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.errors import EngineBuildError
from calipso_runtime.manifest import Manifest
from calipso_runtime.parity import Parity
from calipso_runtime.reference import batch_sizes, read_reference, verify_engine

# Of an engine that works in them: the type that most of its products should have, by the precision of its graph.
_HEAVY_TYPE: Mapping[str, str] = {
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "int8-fp16": "int8",
    "int8-weights": "fp32",
    "fp8": "fp8",
    "fp32": "fp32",
}
# How the answers of an engine stand that was compiled on a machine without its GPU.
UNVERIFIED = "unverified"
# Precisions that compute in 16 bits what is not in eight.
_HALF = ("fp16", "bf16", "int8-fp16", "fp8")
# Precisions whose attention TensorRT has fused kernels for: fp32 has none.
_FUSABLE = _HALF
_SHOWN = 3
_WARM_UPS = 10
_TIMED_S, _MOST_SAMPLES = 0.5, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checks:
    """What was found.

    Attributes:
        failures: why the engine is not what was asked for: it is not published, unless forced.
        warnings: what makes it slower, or could not be checked.
        parity: how it answers, or None where that could not be compared.
        was_run: whether a GPU has run the engine.
    """

    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    parity: Parity | None
    was_run: bool = True

    @property
    def parity_status(self) -> str:
        """For the plan's record."""
        if not self.was_run:
            return UNVERIFIED
        return "unknown" if self.parity is None else self.parity.status

    def as_json(self) -> dict[str, Any]:
        """For the plan's record."""
        return {
            "parity": self.parity_status,
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "worst": None if self.parity is None else self.parity.document["worst"],
        }


def check(engine: Backend, bundle: Bundle, manifest: Manifest, layers: LayerReport, options: BuildOptions) -> Checks:
    """Everything that is checked, on an engine that was loaded from its file."""
    parity = None
    warnings = layer_warnings(manifest, layers)
    if read_reference(bundle) is None:
        warnings.append("the bundle carries no answers to compare with: whether the engine answers right is unknown")
    else:
        ranges = [(each.least, each.most) for each in options.profiles]
        parity = verify_engine(engine, bundle, batches=batch_sizes(*ranges))
    edges = _edges((*engine.inputs, *engine.outputs), manifest)
    failures = [*edges, *_types(manifest, layers), *(parity.failures if parity else ())]
    return Checks(failures=tuple(failures), warnings=tuple(warnings), parity=parity)


def check_compiled(
    inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], manifest: Manifest, layers: LayerReport
) -> Checks:
    """Check what can be checked of an engine that no GPU has run: its edges and its layers."""
    doubt = "answers unverified: no GPU has run this engine yet"
    return Checks(
        failures=(*_edges((*inputs, *outputs), manifest), *_types(manifest, layers)),
        warnings=(*layer_warnings(manifest, layers), doubt),
        parity=None,
        was_run=False,
    )


def refuse_failed(found: Checks, bundle: Bundle) -> None:
    """Refuse to keep an engine that failed its checks.

    Raises:
        EngineBuildError: it failed one; names each.
    """
    if not found.failures:
        return
    failures = "\n  ".join(found.failures)
    message = (
        f"the engine of {bundle.path} is not what its graph says, and is not kept:\n  {failures}\n"
        "Export with another --precision, or publish it nevertheless with --force"
    )
    raise EngineBuildError(message)


def layer_warnings(manifest: Manifest, layers: LayerReport) -> list[str]:
    """What makes an engine slower than its graph promises, or cannot be read off its layers."""
    found = (_fallen_back, _dequantised, _attention)
    return [*(warning for find in found for warning in find(manifest, layers)), *_untold(layers)]


def latencies(engine: Backend, batches: Sequence[int]) -> dict[int, list[float]]:
    """Milliseconds of single calls, from arrays of the host to arrays of the host, per batch; raw samples."""
    (info,) = engine.inputs
    names = [output.name for output in engine.outputs]
    measured = {}
    for batch in batches:
        image = np.zeros((batch, *(size or 1 for size in info.shape[1:])), info.dtype)
        for _ in range(_WARM_UPS):
            engine.run(image, names)
        samples: list[float] = []
        while sum(samples) < 1e3 * _TIMED_S and len(samples) < _MOST_SAMPLES:
            start = time.perf_counter()
            engine.run(image, names)
            samples.append(1e3 * (time.perf_counter() - start))
        measured[batch] = samples
    return measured


def _edges(tensors: Sequence[TensorInfo], manifest: Manifest) -> list[str]:
    """Inputs and outputs that are not those of the graph."""
    promised = {**manifest.graph.get("inputs", {}), **manifest.graph.get("outputs", {})}
    found = {tensor.name: tensor for tensor in tensors}
    wrong = [f"the engine has no {name}" for name in promised if name not in found]
    for name, entry in promised.items():
        if name in found and found[name].dtype != entry.get("dtype", "float32"):
            wrong.append(f"{name} is {found[name].dtype} in the engine, {entry.get('dtype', 'float32')} in the graph")
    return wrong


def _types(manifest: Manifest, layers: LayerReport) -> list[str]:
    """An engine that computes in fp32 what its graph says in less: it would answer right, slowly."""
    expected = _HEAVY_TYPE.get(manifest.precision)
    if expected in (None, "fp32") or not layers.heavy_types or layers.heavy_types.get(str(expected)):
        return []
    found = ", ".join(f"{count} in {kind}" for kind, count in layers.heavy_types.items())
    return [f"no layer computes in {expected}, which is the precision of the graph: {found}"]


def _fallen_back(manifest: Manifest, layers: LayerReport) -> list[str]:
    """Products of the tower that compute in fp32, though the graph says less, and has not kept them in it."""
    kept = {each["node"] for each in manifest.graph.get("precision", {}).get("kept_in_fp32", ())}
    if manifest.precision not in _HALF:
        return []
    fallen = [
        node for node, kind in layers.products.items() if kind == "fp32" and node.startswith(TOWER) and node not in kept
    ]
    if not fallen:
        return []
    return [f"{len(fallen)} products fell back to fp32: {_few(fallen)}"]


def _dequantised(manifest: Manifest, layers: LayerReport) -> list[str]:
    """Products with eight-bit weights whose kernels multiply something wider."""
    expected = _HEAVY_TYPE.get(manifest.precision)
    if expected not in EIGHT_BITS:
        return []
    wider = layers.dequantised
    if not wider:
        return []
    message = (
        f"{len(wider)} of {len(layers.quantised)} products with {expected} weights multiply "
        f"{', '.join(sorted(set(wider.values())))} ({_few(list(wider))}): the engine dequantises their weights "
        "whenever it runs"
    )
    return [message]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _attention(manifest: Manifest, layers: LayerReport) -> list[str]:
    if manifest.precision not in _FUSABLE or not layers.unfused:
        return []
    message = (
        f"{len(layers.unfused)} attention blocks run unfused ({_few(layers.unfused)}): expected MatMul, Softmax, "
        "MatMul in one kernel. That takes fp16 or bf16 throughout, heads of 16 to 256 in steps of 8, and nothing "
        "between the three but a scale on the query; `calipso lint` says what each block has instead"
    )
    return [message]


def _untold(layers: LayerReport) -> list[str]:
    if layers.is_detailed and not layers.untold:
        return []
    return ["TensorRT does not tell which kernels compute the attention: whether it is fused is unknown"]
