"""Writes a ship kit.

install.sh, build.sh, trtexec.sh    checks and installs the kit; builds the engine; the same build by trtexec
benchmark.sh, calipso-benchmark.service.in   checks and times the engine, at boot if wanted
calipso-*.whl, bundle/              the runtime, and the bundle
cpp/                                a program without Python, sample input, and the answers expected of it
SHA256SUMS                          of everything else

A kit for TensorRT for RTX has no trtexec.sh and no cpp/: both are for TensorRT.
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from calipso_runtime.bundle import MANIFEST_FILE, Bundle, open_bundle
from calipso_runtime.engines.ahead import refuse_options
from calipso_runtime.engines.families import NAMES, TENSORRT, TENSORRT_RTX
from calipso_runtime.engines.options import BuildOptions, as_line, build_words, trtexec_command
from calipso_runtime.engines.plans import FOLDER, Plan, engines_folder, read_plan, version_numbers
from calipso_runtime.errors import BundleError, UsageError
from calipso_runtime.graph_file import MODEL_FILE, seal_of
from calipso_runtime.hashes import sha256_of
from calipso_runtime.head.file import manifest_of, refuse_engine, refuse_labels
from calipso_runtime.manifest import IMAGE, Manifest
from calipso_runtime.output_folder import output_folder
from calipso_runtime.reference import read_reference
from calipso_runtime.ship.sample import write_sample
from calipso_runtime.ship.wheel import put_wheel
from calipso_runtime.signing import signature_path

JETSON, SERVER, RTX = TARGETS = ("jetson", "server", "rtx")
SUMS_FILE = "SHA256SUMS"
_FILES = Path(__file__).with_name("files")
_BUNDLE, _CPP = "bundle", "cpp"
_EXECUTABLE = 0o755
_TRTEXEC = """\
#!/bin/sh
# The engine that build.sh builds, by NVIDIA's trtexec, as model.plan. Nothing checks how it answers, and the
# runtime does not load it: it has no record.
set -eu
cd -- "$(dirname -- "$0")"
"""
_EXTRAS = {JETSON: "cli", SERVER: "cli,trt", RTX: "cli,rtx"}
_BUILD = """\
#!/bin/sh
# Builds the engine for this machine's GPU, with the options that the kit was made for, and checks it.
set -eu
cd -- "$(dirname -- "$0")"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What a kit is to hold.

    Attributes:
        bundle: path of the bundle.
        target: of `TARGETS`: "jetson" takes JetPack's tensorrt, "server" that of pip, "rtx" pip's TensorRT for RTX.
        options: the engine is built with.
        with_engines: take the engines along that were built already.
        wheel: of the runtime; built from the source tree where None.
    """

    bundle: Path
    target: str
    options: BuildOptions
    with_engines: bool = False
    wheel: Path | None = None

    @property
    def engine(self) -> str:
        """Return the library that runs the bundle there: of `families.NAMES`."""
        return TENSORRT_RTX if self.target == RTX else TENSORRT


def ship(order: Order, output: Path, *, overwrite: bool = False) -> Manifest:
    """Write a kit.

    Args:
        order: what it is to hold.
        output: the folder; it is there when it is complete, and not before.
        overwrite: replace an older kit.

    Returns:
        The manifest of the bundle in it.

    Raises:
        BundleError: the bundle cannot be used, or carries nothing that an engine could be checked with.
        UsageError: there is no wheel, or what was given is none; the bundle's head is an input of its graph, or
            it takes point clouds, or any labels; an option is not for TensorRT for RTX.
        OutputPathError: the output exists already, or cannot be written.
    """
    if order.target == RTX:
        refuse_options(order.options)
    bundle = open_bundle(order.bundle)
    refuse_engine(order.bundle, manifest_of(bundle))
    _refuse_others(order, bundle.manifest)
    manifest, reference = bundle.manifest, read_reference(bundle)
    if manifest is None or reference is None:
        message = (
            f"{order.bundle} carries no answers of eager PyTorch, so no engine of it could be checked: it is a bare "
            "graph, or was exported with --no-reference. Export it without, and ship the bundle's directory"
        )
        raise BundleError(message)
    with output_folder(output, what="kit", marker=SUMS_FILE, overwrite=overwrite) as folder:
        plans = _ready_plans(bundle, order) if order.with_engines else []
        _copy_bundle(bundle, manifest, folder / _BUNDLE, plans)
        put_wheel(folder, order.wheel)
        _write_scripts(folder, order, plans)
        if order.target != RTX:
            _write_trtexec(folder, order, manifest)
            shutil.copytree(_FILES / _CPP, folder / _CPP)
            write_sample(folder / _CPP, reference, manifest)
        _write_sums(folder)
    return manifest


def _refuse_others(order: Order, manifest: Manifest | None) -> None:
    """What the program cannot answer with: anything but pictures, and classes that only a call names."""
    if manifest is None:
        return
    path = order.bundle
    what = "a kit installs nothing that runs a text tower"
    if order.target != RTX:
        what = "a kit's C++ program knows those of the export alone"
    refuse_labels(path, manifest, f"{what}: copy the bundle's directory to the device")
    if manifest.input_name != IMAGE and order.target != RTX:
        message = (
            f"{path} takes {manifest.input_name}, and a kit's C++ program takes pictures alone: copy the bundle's "
            "directory to the device, and run `calipso build` there"
        )
        raise UsageError(message)


def _ready_plans(bundle: Bundle, order: Order) -> list[Plan]:
    """Return the engines that a kit takes along: of its library, from this graph, by the newest version alone.

    Raises:
        BundleError: there are none.
    """
    read = map(read_plan, sorted(engines_folder(bundle).glob("*.json")))
    graph = seal_of(bundle.model_path)
    plans = [plan for plan in read if plan.record.machine.engine == order.engine and plan.record.graph == graph]
    if not plans:
        by = "calipso build" if order.engine == TENSORRT else f"calipso build --engine {order.engine}"
        message = (
            f"{bundle.path} holds no engines of {NAMES[order.engine]} for its graph: build one with `{by}`, or ship "
            "without --with-engines"
        )
        raise BundleError(message)
    if order.target != RTX:
        return plans
    # The kit installs one version, and a plan of TensorRT for RTX runs with the version that wrote it alone.
    newest = max((plan.record.machine.tensorrt for plan in plans), key=version_numbers)
    return [plan for plan in plans if plan.record.machine.tensorrt == newest]


def _copy_bundle(bundle: Bundle, manifest: Manifest, target: Path, plans: Sequence[Plan]) -> None:
    """Copy what the manifest lists, and these engines; every copy is checked against its hash."""
    target.mkdir()
    _copy_all([bundle.path / name for name in (MANIFEST_FILE, *manifest.files)], target)
    open_bundle(target)
    if plans:
        (target / FOLDER).mkdir()
        _copy_all([path for plan in plans for path in (plan.record_path, plan.path)], target / FOLDER)
        for plan in plans:
            read_plan(target / FOLDER / plan.record_path.name).check()


def _copy_all(paths: Sequence[Path], target: Path) -> None:
    """Copy files, each with its signature where it has one."""
    for path in paths:
        shutil.copyfile(path, target / path.name)
        if (signature := signature_path(path)).is_file():
            shutil.copyfile(signature, target / signature.name)


def _write_scripts(folder: Path, order: Order, plans: Sequence[Plan]) -> None:
    """The scripts: as they lie in the package, with what was chosen filled in."""
    pinned = f"tensorrt-rtx=={plans[0].record.machine.tensorrt}" if plans and order.target == RTX else ""
    chosen = {
        "@TARGET@": order.target,
        "@EXTRAS@": _EXTRAS[order.target],
        "@BACKEND@": order.engine,
        "@PINNED@": pinned,
        "@BATCHES@": ",".join(str(batch) for batch in sorted({each.best for each in order.options.profiles})),
    }
    for name in ("install.sh", "benchmark.sh", "calipso-benchmark.service.in"):
        text = (_FILES / name).read_text(encoding="utf-8")
        for mark, value in chosen.items():
            text = text.replace(mark, value)
        _write(folder / name, text)
    build = ["venv/bin/calipso", "build", _BUNDLE, "--engine", order.engine, *build_words(order.options)]
    _write(folder / "build.sh", f"{_BUILD}{as_line(build)}\n")


def _write_trtexec(folder: Path, order: Order, manifest: Manifest) -> None:
    model, image = f"{_BUNDLE}/{MODEL_FILE}", (3, *manifest.preprocess.size)
    trtexec = trtexec_command(order.options, model=model, plan="model.plan", image=image)
    _write(folder / "trtexec.sh", f"{_TRTEXEC}{as_line(trtexec)}\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
    if path.suffix == ".sh":
        path.chmod(_EXECUTABLE)


def _write_sums(folder: Path) -> None:
    """What `sha256sum -c` reads."""
    paths = sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")
