"""`calipso check`: an engine against the answers of eager PyTorch that the bundle carries."""

import contextlib
import functools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from calipso_runtime.backends import ALL_BACKENDS, AUTO, GpuOptions, HeadBackend, connect
from calipso_runtime.bundle import Bundle, open_bundle
from calipso_runtime.commands.sign import signature_option
from calipso_runtime.commands.tables import plain_console, print_parity
from calipso_runtime.commands.teach import taught_option
from calipso_runtime.engines.checks import latencies
from calipso_runtime.errors import ParityError, UsageError
from calipso_runtime.head.check import verify_head
from calipso_runtime.head.classes import Head
from calipso_runtime.head.file import is_input, manifest_of
from calipso_runtime.head.teacher import open_teacher
from calipso_runtime.loading import towers
from calipso_runtime.parity import Parity
from calipso_runtime.reference import BATCH_SIZES, verify_engine, verify_texts


@click.command("check")
@click.argument("bundle", type=click.Path())
@click.option(
    "--backend", type=click.Choice([AUTO, *ALL_BACKENDS]), default=AUTO, show_default=True, help="Engine to check."
)
@click.option(
    "--batch",
    "batches",
    metavar="N,N",
    default=",".join(map(str, BATCH_SIZES)),
    show_default=True,
    help="Batch sizes that are asked.",
)
@click.option("--latency", is_flag=True, help="Time calls of every batch size too.")
@signature_option
@taught_option
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as JSON.")
def check_command(
    *,
    bundle: str,
    backend: str,
    batches: str,
    latency: bool,
    require_signature: Path | None,
    taught: Path | None,
    as_json: bool,
) -> None:
    """Check that BUNDLE answers here as eager PyTorch did where it was exported; exit code 1 if a gate fails.

    Needs no torch: the bundle carries pictures and the answers to them. What it was taught is checked as well,
    against the formula in numpy.
    """
    sizes = _sizes(batches)
    opened = open_bundle(bundle, require_signature=require_signature)
    # An engine that failed its first check is measured all the same.
    gpu = GpuOptions(first_check=False)
    engine, reason = connect(opened, backend=backend, threads=None, keep_optimised=False, gpu=gpu)
    found = {}
    with contextlib.closing(engine):
        found["as exported"] = verify_engine(engine, opened, batches=sizes)
        manifest, images = manifest_of(opened), engine
        if manifest.takes_labels:
            connecting = functools.partial(connect, backend=backend, threads=None, keep_optimised=False)
            images, open_text = towers(opened, manifest, engine, connecting)
            with contextlib.closing(open_text()) as texts:
                found["texts"] = verify_texts(texts, opened)
        if (head := _taught(opened, taught)) is not None:
            found["as taught"] = verify_head(cast("HeadBackend", engine), head, opened, batches=sizes)
        timed = latencies(images, sizes) if latency else None
    if as_json:
        click.echo(json.dumps(_document(found, timed), indent=2))
    else:
        console = plain_console()
        console.print(reason, soft_wrap=True)
        for name, parity in found.items():
            if len(found) > 1:
                console.print(f"{name}:")
            print_parity(console, parity)
        for batch, samples in (timed or {}).items():
            console.print(f"batch {batch}: median {statistics.median(samples):.3f} ms of {len(samples)} calls")
    if any(parity.failures for parity in found.values()):
        failures = "\n  ".join(each for parity in found.values() for each in parity.failures)
        message = f"{bundle} on {engine.name} does not answer like eager PyTorch:\n  {failures}"
        raise ParityError(message)


def _document(found: Mapping[str, Parity], timed: Mapping[int, list[float]] | None) -> dict[str, Any]:
    document = found["as exported"].as_json()
    for name, key in (("as taught", "taught"), ("texts", "texts")):
        if name in found:
            document[key] = found[name].as_json()
    return document if timed is None else {**document, "latency_ms": timed}


def _taught(bundle: Bundle, taught: Path | None) -> Head | None:
    """The head that a bundle was taught, if it was."""
    manifest = manifest_of(bundle)
    if not is_input(manifest):
        return None
    teacher = open_teacher(bundle, manifest, True if taught is None else taught)
    return None if teacher.head is teacher.exported else teacher.head


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        message = f"--batch is {text!r}: expected whole numbers, such as 1,8"
        raise UsageError(message) from error
