"""`calipso build`: an engine for this machine's GPU, or compiled ahead for others, checked before it is kept."""

import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from calipso_runtime.commands.build_options import build_options, options_of
from calipso_runtime.commands.progress_bars import progress_bars
from calipso_runtime.engines import families
from calipso_runtime.engines.ahead import compile_ahead, refuse
from calipso_runtime.engines.build import build
from calipso_runtime.engines.families import sm
from calipso_runtime.engines.options import BuildOptions, as_line, trtexec_command
from calipso_runtime.engines.workplace import Finished, opened
from calipso_runtime.errors import UsageError
from calipso_runtime.interrupts import terminated_like_interrupted

_PATH = click.Path(path_type=Path)


@click.command("build")
@click.argument("bundle", type=_PATH)
@click.option(
    "--engine",
    type=click.Choice((families.AUTO, *families.NAMES)),
    default=families.AUTO,
    show_default=True,
    help="auto: TensorRT where it works, else TensorRT for RTX.",
)
@click.option(
    "--capability",
    metavar="SM,...",
    help="GPUs to compile for with tensorrt-rtx, such as sm86,sm89,sm120 (default: all that the precision runs on).",
)
@build_options
@click.option("--timing-cache", type=_PATH, metavar="FILE", help="Keeps what was measured (default: one per GPU).")
@click.option("--builds", type=int, default=1, show_default=True, help="Build so often, keep the fastest that passes.")
@click.option("--force", is_flag=True, help="Keep an engine that failed its checks, marked so.")
@click.option("--log", "log_path", type=_PATH, metavar="FILE", help="Write TensorRT's whole log there.")
@click.option("--print-trtexec", is_flag=True, help="Build nothing: print the equivalent command of trtexec.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan's record as JSON.")
def build_command(
    *,
    bundle: Path,
    engine: str,
    capability: str | None,
    timing_cache: Path | None,
    builds: int,
    force: bool,
    log_path: Path | None,
    print_trtexec: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Build an engine of BUNDLE and keep it in BUNDLE/engines.

    TensorRT builds for this machine's GPU. The engine is loaded from its file and held to the bundle's parity gates.

    TensorRT for RTX compiles for other GPUs, on any machine. Types and fused attention are checked; how the engine
    answers is unverified until a GPU has run it.
    """
    options = options_of(**flags)
    if print_trtexec and engine != families.TENSORRT_RTX and capability is None:
        click.echo(_trtexec(bundle, options))
        return
    # A bundle of which no engine can be built is refused whatever this machine has; its hashes are remembered.
    opened(bundle)
    engine = families.resolve(engine, ahead=capability is not None)
    if engine == families.TENSORRT_RTX:
        _refuse_others(timing_cache, builds, print_trtexec=print_trtexec)
        options = options_of(**flags, ahead=True)
    with contextlib.ExitStack() as stack:
        log = None
        if log_path is not None:
            try:
                log = stack.enter_context(log_path.open("w", encoding="utf-8"))
            except OSError as error:
                message = f"--log {log_path} cannot be written: {error.strerror}"
                raise UsageError(message) from error
        stack.enter_context(terminated_like_interrupted())
        report = stack.enter_context(progress_bars(Console(stderr=True)))
        if engine == families.TENSORRT_RTX:
            finished = compile_ahead(bundle, options, capability=capability, force=force, log=log, report=report)
        else:
            finished = build(
                bundle, options, builds=builds, timing_cache=timing_cache, force=force, log=log, report=report
            )
    if as_json:
        click.echo(json.dumps(finished.plan.record.as_json(), indent=2))
    else:
        _print(finished)


def _refuse_others(timing_cache: Path | None, builds: int, *, print_trtexec: bool) -> None:
    """Refuse what is only for TensorRT, which times kernels on the GPU while it builds."""
    measures = "it measures nothing while it compiles"
    refused = (
        ("--timing-cache", timing_cache is not None, measures),
        ("--builds", builds != 1, measures),
        ("--print-trtexec", print_trtexec, "trtexec builds with TensorRT"),
    )
    for flag, is_set, why in refused:
        if is_set:
            refuse(flag, why)


# Of a bare graph, whose inputs are not known.
_ANY_IMAGE: tuple[int | None, ...] = (3, 224, 224)


def _trtexec(bundle: Path, options: BuildOptions) -> str:
    from calipso_runtime.bundle import open_bundle
    from calipso_runtime.head.file import refuse_engine
    from calipso_runtime.manifest import IMAGE

    opened = open_bundle(bundle, remember=True)
    manifest = opened.manifest
    name, shape = IMAGE, _ANY_IMAGE
    if manifest is not None:
        name, shape = manifest.input_name, manifest.input_shape
    sizes = [size for size in shape if size is not None]
    if manifest is not None and len(sizes) < len(shape):
        refuse_engine(bundle, manifest)
    return as_line(trtexec_command(options, model=str(opened.model_path), plan="model.plan", image=sizes, name=name))


def _print(finished: Finished) -> None:
    record, found = finished.plan.record, finished.checks
    console = Console(markup=False, emoji=False, highlight=False)
    kept = next(each for each in record.builds if each["kept"])
    made_for = f"on {record.machine.gpu}" if record.machine.gpu else f"for {', '.join(map(sm, record.compiled_for))}"
    console.print(f"{record.machine.compiler} {made_for}, built in {kept['seconds']:.0f} s")
    for batch, samples in kept["latency_ms"].items():
        console.print(f"batch {batch}: median {statistics.median(samples):.3f} ms from host to host")
    if len(record.builds) > 1:
        console.print(_spread(finished), soft_wrap=True)
    heavy = ", ".join(f"{count} in {kind}" for kind, count in record.layers["heavy_types"].items())
    console.print(
        f"{record.layers['count']} layers; products: {heavy or 'not told'}; "
        f"{record.layers['fused']} fused attention kernels"
    )
    if found.parity is not None:
        worst = found.parity.document["worst"]
        console.print(
            f"worst relative logit error {worst['relative_logit_error']:.1e}, the same top class on "
            f"{worst['same_top1']:.2%}"
        )
    for failure in found.failures:
        click.echo(f"failed: {failure}", err=True)
    for warning in (*found.warnings, *finished.warnings):
        click.echo(f"warning: {warning}", err=True)
    style = "red" if found.failures else ("green" if found.was_run else "yellow")
    console.print(f"parity: {record.parity}", style=style)
    console.print(f"wrote {finished.plan.path}", soft_wrap=True)


def _spread(finished: Finished) -> str:
    """How far several builds are apart."""
    builds = finished.plan.record.builds
    parts = []
    for batch in builds[0]["latency_ms"]:
        medians = sorted(statistics.median(each["latency_ms"][batch]) for each in builds)
        parts.append(f"batch {batch} {medians[0]:.3f} to {medians[-1]:.3f} ms")
    passed = sum(not each["failures"] for each in builds)
    between = finished.plan.record.checks["answers_between_builds"]
    return (
        f"{len(builds)} builds, {passed} passed: {', '.join(parts)}; "
        f"logits differ by up to {between:.1e} of their spread between builds"
    )
