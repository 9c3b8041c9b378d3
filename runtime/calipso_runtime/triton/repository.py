"""Writes a Triton model repository of a bundle: a folder that `tritonserver --model-repository` serves.

    onnx      NAME-onnx: the graph, for the ONNX Runtime back end
    tensorrt  NAME-tensorrt: the bundle's engines, for the TensorRT back end
    python    NAME-python: the bundle and this runtime, for the Python back end; pictures' bytes in, classes out

Each has its config.pbtxt, written by hand: Triton's schema is protobuf, which the runtime does without.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calipso_runtime.bundle import MANIFEST_FILE, Bundle, open_bundle
from calipso_runtime.engines import families
from calipso_runtime.engines.plans import Plan, PlanRecord, engines_folder, read_plan
from calipso_runtime.errors import BundleNotFoundError, UsageError
from calipso_runtime.graph_file import seal_of
from calipso_runtime.head.file import refuse_labels
from calipso_runtime.manifest import Manifest
from calipso_runtime.output_folder import output_folder

ONNX, TENSORRT, PYTHON = FORMS = ("onnx", "tensorrt", "python")
KINDS = ("auto", "cpu", "gpu")
MARKER_FILE = "calipso.json"
LABELS_FILE = "labels.txt"
CONFIG_FILE = "config.pbtxt"
BUNDLE_FOLDER = "bundle"
# Of the Python form.
PICTURE, OUTPUTS = "picture", (("label", "string"), ("probability", "float32"), ("logit", "float32"))
UNKNOWN = "unknown"
_VERSION = "1"
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "string": "TYPE_STRING",
    "bool": "TYPE_BOOL",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PYTHON_MODEL = '''"""Written by `calipso triton`. The server's Python needs: pip install 'calipso[ort]'."""

from calipso_runtime.triton.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """How a bundle is to be served.

    Attributes:
        name: that the models' names begin with.
        forms: "onnx", "tensorrt", "python"; none for what the bundle has of the first two, or python for a bundle that
            needs the runtime.
        instances: copies of the model that run side by side, on each device.
        kind: where: "auto", "cpu" or "gpu".
        most: pictures of several requests that are computed together, at most.
        delay_us: microseconds that a request may wait for others.
        top: classes that the Python form answers.
        threads: CPU threads of an instance; None leaves it to the engine.

    Raises:
        UsageError: a value cannot be.
    """

    name: str
    forms: tuple[str, ...] = ()
    instances: int = 1
    kind: str = "auto"
    most: int = 32
    delay_us: int = 500
    top: int = 5
    threads: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            message = f"the name {self.name!r}: expected letters, digits, points, - and _; choose another with --name"
            raise UsageError(message)
        for name, least in (("instances", 1), ("most", 1), ("delay_us", 0), ("top", 1)):
            if getattr(self, name) < least:
                message = f"{name} is {getattr(self, name)}: expected a whole number of at least {least}"
                raise UsageError(message)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    dims: tuple[int, ...]

    def text(self, *, labels: bool = False) -> str:
        told = f' label_filename: "{LABELS_FILE}"' if labels else ""
        return f'{{ name: "{self.name}" data_type: {_TYPES[self.dtype]} dims: {list(self.dims)}{told} }}'


def write_repository(path: Path, serving: Serving, output: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Write it; gives the names of its models.

    Raises:
        BundleError: the bundle cannot be used.
        UsageError: it takes any labels, or cannot be served in a form that was asked for.
        OutputPathError: the output exists, or cannot be written.
    """
    bundle = open_bundle(path)
    if bundle.manifest is None:
        message = f"{path} is a bare graph: give the bundle's directory, whose files are checked and copied"
        raise BundleNotFoundError(message)
    refuse_labels(path, bundle.manifest, "a request to Triton brings none: use it with `calipso_runtime.load`")
    manifest, plans = bundle.manifest, _plans(bundle)
    forms = serving.forms or _default_forms(manifest, plans)
    writers: dict[str, Callable[[Path], None]] = {
        ONNX: lambda folder: _write_onnx(folder, bundle, manifest, serving),
        TENSORRT: lambda folder: _write_tensorrt(folder, bundle, manifest, plans, serving),
        PYTHON: lambda folder: _write_python(folder, bundle, manifest, serving),
    }
    names = {form: f"{serving.name}-{form}" for form in dict.fromkeys(forms)}
    with output_folder(output, what="Triton repository", marker=MARKER_FILE, overwrite=overwrite) as work:
        for form, name in names.items():
            (work / name / _VERSION).mkdir(parents=True)
            writers[form](work / name)
        record = {"bundle": bundle.digest, "models": list(names.values())}
        (work / MARKER_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return tuple(names.values())


def _default_forms(manifest: Manifest, plans: Sequence[Plan]) -> tuple[str, ...]:
    if _given_tensors(manifest):
        return (PYTHON,)
    return (ONNX, TENSORRT) if plans else (ONNX,)


def _write_onnx(folder: Path, bundle: Bundle, manifest: Manifest, serving: Serving) -> None:
    _check_bare(manifest, ONNX)
    for name in (name for name in manifest.files if name in ("model.onnx", "model.onnx.data")):
        shutil.copyfile(bundle.path / name, folder / _VERSION / name)
    inputs, outputs = (_tensors(manifest.graph[side]) for side in ("inputs", "outputs"))
    threads = {} if serving.threads is None else {"intra_op_thread_count": str(serving.threads)}
    _write_config(
        folder,
        serving,
        manifest,
        backend="onnxruntime",
        tensors=(inputs, outputs),
        kind=serving.kind,
        warm_up=[_zeros(_warm(inputs[0], manifest), batch) for batch in _warm_batches(serving.most)],
        parameters=threads,
    )


def _write_tensorrt(folder: Path, bundle: Bundle, manifest: Manifest, plans: Sequence[Plan], serving: Serving) -> None:
    _check_bare(manifest, TENSORRT)
    if not plans:
        message = (
            f"{engines_folder(bundle)} holds no engine of this graph that a server can load: run `calipso build "
            f"{bundle.path}` on the GPU of the server, with its version of TensorRT"
        )
        raise UsageError(message)
    if serving.kind == "cpu":
        message = "--kind cpu: TensorRT runs on GPUs alone. Leave --kind out, or choose --form onnx"
        raise UsageError(message)
    profiles = {plan.record.options.profiles for plan in plans}
    versions = {plan.record.machine.tensorrt for plan in plans}
    if len(profiles) > 1 or len(versions) > 1:
        message = (
            f"{engines_folder(bundle)} holds engines of TensorRT {', '.join(sorted(versions))} with {len(profiles)} "
            "sets of batches: a server has one TensorRT, and one configuration for all its GPUs. Leave the others out"
        )
        raise UsageError(message)
    by_capability = {f"{major}.{minor}": plan for plan in plans for major, minor in plan.record.capabilities}
    files = {capability: f"model-{capability}.plan" for capability in by_capability}
    for capability, plan in by_capability.items():
        plan.check()
        shutil.copyfile(plan.path, folder / _VERSION / files[capability])
    tensors = plans[0].record.tensors
    inputs, outputs = (
        [_tensor(each["name"], each) for each in tensors if each["mode"] == side] for side in ("input", "output")
    )
    ranges = next(iter(profiles))
    most = max(each.most for each in ranges)
    cc_files = [f'{{ key: "{capability}" value: "{name}" }}' for capability, name in files.items()]
    _write_config(
        folder,
        dataclasses.replace(serving, most=most),
        manifest,
        backend="tensorrt",
        tensors=(inputs, outputs),
        kind="gpu",
        profiles=range(len(ranges)),
        warm_up=[_zeros(_warm(inputs[0], manifest), each.best) for each in ranges],
        more=[
            f'default_model_filename: "{next(iter(files.values()))}"',
            *(f"cc_model_filenames {text}" for text in cc_files),
        ],
    )


def _write_python(folder: Path, bundle: Bundle, manifest: Manifest, serving: Serving) -> None:
    target = folder / _VERSION / BUNDLE_FOLDER
    target.mkdir()
    for name in (MANIFEST_FILE, *manifest.files):
        shutil.copyfile(bundle.path / name, target / name)
    (folder / _VERSION / "model.py").write_text(_PYTHON_MODEL, encoding="utf-8")
    top = min(serving.top, len(manifest.labels))
    outputs = [_Tensor(name, dtype, (top,)) for name, dtype in OUTPUTS]
    threads = {} if serving.threads is None else {"threads": str(serving.threads)}
    _write_config(
        folder,
        serving,
        manifest,
        backend="python",
        tensors=([_Tensor(PICTURE, "string", (1,))], [*outputs, _Tensor(UNKNOWN, "bool", (1,))]),
        kind=serving.kind,
        # It warms up by itself when it is loaded.
        warm_up=(),
        parameters={"top": str(top), **threads},
        labelled="",
    )


def _write_config(
    folder: Path,
    serving: Serving,
    manifest: Manifest,
    *,
    backend: str,
    tensors: tuple[Sequence[_Tensor], Sequence[_Tensor]],
    kind: str,
    warm_up: Iterable[str],
    profiles: Iterable[int] = (),
    parameters: Mapping[str, str] | None = None,
    more: Sequence[str] = (),
    labelled: str = "logits",
) -> None:
    inputs, outputs = tensors
    chosen = "".join(f' profile: "{index}"' for index in profiles)
    lines = [
        f'name: "{folder.name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {serving.most}",
        *(f"input {each.text()}" for each in inputs),
        *(f"output {each.text(labels=each.name == labelled)}" for each in outputs),
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group {{ count: {serving.instances} kind: KIND_{kind.upper()}{chosen} }}",
        f"dynamic_batching {{ max_queue_delay_microseconds: {serving.delay_us} }}",
        *warm_up,
        *(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in (parameters or {}).items()
        ),
        *more,
    ]
    (folder / CONFIG_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    labels = [" ".join(label.split()) for label in manifest.labels]
    (folder / LABELS_FILE).write_text("\n".join(labels) + "\n", encoding="utf-8")


def _zeros(tensor: _Tensor, batch: int) -> str:
    """A run before the model is ready."""
    value = f"{{ data_type: {_TYPES[tensor.dtype]} dims: {list(tensor.dims)} zero_data: true }}"
    given = f'{{ key: "{tensor.name}" value {value} }}'
    return f'model_warmup {{ name: "batch of {batch}" batch_size: {batch} inputs {given} }}'


def _warm(tensor: _Tensor, manifest: Manifest) -> _Tensor:
    """The same with sizes where any would do: of raw pixels, what the model resizes to."""
    height, width = manifest.preprocess.size
    sizes = iter((height, width))
    return dataclasses.replace(tensor, dims=tuple(next(sizes) if each < 0 else each for each in tensor.dims))


def _warm_batches(most: int) -> list[int]:
    return sorted({1, most})


def _tensors(table: Mapping[str, Mapping[str, Any]]) -> list[_Tensor]:
    return [_tensor(name, each) for name, each in table.items()]


def _tensor(name: str, entry: Mapping[str, Any]) -> _Tensor:
    """Without its batch, which Triton adds. A size with a name, or none, may be any."""
    return _Tensor(name, entry["dtype"], tuple(each if isinstance(each, int) else -1 for each in entry["shape"][1:]))


def _given_tensors(manifest: Manifest) -> list[str]:
    """Inputs beside the pictures."""
    return [name for name in manifest.graph["inputs"] if name != manifest.input_name]


def _check_bare(manifest: Manifest, form: str) -> None:
    if given := _given_tensors(manifest):
        message = (
            f"this graph takes {', '.join(given)} beside {manifest.input_name}, which every request would have to "
            f"bring: --form {PYTHON} serves it with the runtime; --form {form} needs a bundle whose head is baked in"
        )
        raise UsageError(message)


def _plans(bundle: Bundle) -> list[Plan]:
    """The engines of this graph that a server can load as they are."""
    seal = seal_of(bundle.model_path)
    plans = [read_plan(path) for path in sorted(engines_folder(bundle).glob("*.json"))]
    return [plan for plan in plans if plan.record.graph == seal and _is_servable(plan.record)]


def _is_servable(record: PlanRecord) -> bool:
    """Whether Triton's TensorRT loads it with nothing beside it; it does not load plans of TensorRT for RTX."""
    options = record.options
    return record.machine.engine == families.TENSORRT and not options.strip_weights and options.dla_core is None
