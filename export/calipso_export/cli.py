"""The exporter's commands: `calipso export` and `calipso verify`."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from calipso_export.choices import (
    ACTIVATIONS,
    AS_INPUTS,
    EMBED,
    HEAD_MODES,
    INPUTS,
    IO_DTYPES,
    NO_CALIP,
    NO_OPEN_CALIP,
    OPEN,
    OPSETS,
    TARGETS,
    VIEW_COUNTS,
    WEIGHTS,
)
from calipso_export.classes import read_classes
from calipso_export.config import ExportConfig
from calipso_export.config_file import read_config
from calipso_export.heads import DEFAULT, FEW_SHOT, few_shot_class
from calipso_export.report import CANDIDATE_COLUMNS, candidate_rows, made_anew
from calipso_export.report_confidence import confidence_lines
from calipso_export.templates import TEMPLATE_NAMES
from calipso_runtime.commands.progress_bars import progress_bars
from calipso_runtime.commands.tables import plain_console, print_parity
from calipso_runtime.errors import CalipsoError, CalipsoWarning, ParityError, UsageError
from calipso_runtime.pixel_input import CHANNEL_ORDERS, RESIZE_FORMS

if TYPE_CHECKING:
    from calipso_runtime.manifest import Manifest
    from calipso_runtime.parity import Parity

_PATH = click.Path(path_type=Path)


@click.command("export")
@click.option("--model", help="An open_clip name, a configuration (.json), or a folder with open_clip_config.json.")
@click.option("--pretrained", metavar="TAG", help="open_clip's tag of the weights; downloads them.")
@click.option("--checkpoint", type=_PATH, metavar="FILE", help="Weights: safetensors, torch, or a folder of them.")
@click.option("--random-init", type=int, metavar="SEED", help="Random weights, to measure without a checkpoint.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), help="With which a checkpoint was trained, if in doubt.")
@click.option("--tokenizer", type=_PATH, metavar="DIR", help="A Hugging Face tokenizer's files, where it is one.")
@click.option("--text-model", type=_PATH, metavar="DIR", help="A Hugging Face text model's config.json, likewise.")
@click.option("--input", type=click.Choice(INPUTS), help="What is classified: pictures (default) or point clouds.")
@click.option("--pixels", is_flag=True, default=None, help="Take pictures as decoded, and prepare them in the graph.")
@click.option("--pixels-size", metavar="HxW", help="All of them are of this size, as a camera's (default: any).")
@click.option("--channel-order", type=click.Choice(list(CHANNEL_ORDERS)), help="Of these pixels (default rgb).")
@click.option(
    "--resize-form", type=click.Choice(RESIZE_FORMS), help="op (any size, ONNX Runtime) or matmul (one size)."
)
@click.option("--points", type=int, help="Points of a cloud that the graph takes (default 1024).")
@click.option("--views", type=click.Choice(list(map(str, VIEW_COUNTS))), help="Depth maps of a cloud (default 6).")
@click.option("--view-weights", metavar="W,W,...", help="equal, search (on the shots), or a number per view.")
@click.option("--classes", metavar="FILE|a,b,c", help="Class names: .txt (one a line), .toml, .json, or inline.")
@click.option("--templates", metavar="NAME|FILE", help=f"Prompt templates: {', '.join(TEMPLATE_NAMES)}, or a file.")
@click.option("--text-weights", type=_PATH, metavar="FILE", help="Learned text features, instead of prompts.")
@click.option("--shots", type=_PATH, metavar="DIR", help="Example photos, DIR/<class>/*.")
@click.option("--cache-file", type=_PATH, metavar="NPZ", help="Ready cache keys and labels, instead of --shots.")
@click.option("--calip/--no-calip", default=None, help="Use CALIP's attention (default: if photos choose its weights).")
@click.option("--calip-fs", is_flag=True, default=None, help="Learn linear layers in CALIP's attention on the shots.")
@click.option("--cache/--no-cache", default=None, help="Use a few-shot head (default: if there are shots).")
@click.option("--head", metavar="NAME", help=f"Which: {', '.join(FEW_SHOT)} or auto (default {DEFAULT}).")
@click.option("--alpha", type=float, help="Weight of the cache; searched on the shots where not given.")
@click.option("--beta", type=float, help="Sharpness of the cache; searched on the shots where not given.")
@click.option("--b2", type=float, help="CALIP's weight of the text seen through the image; searched likewise.")
@click.option("--b3", type=float, help="CALIP's weight of the image seen through the text; searched likewise.")
@click.option(
    "--unknown-at", type=float, metavar="SHARE", help="Call pictures unknown; so many strangers may pass (0.05)."
)
@click.option("--epochs", type=int, help="Augmented views averaged into each key (default 10; 0: the photo as it is).")
@click.option(
    "--head-mode",
    type=click.Choice(HEAD_MODES),
    help="inputs: classes can be taught later; open: any labels; embed: the towers apart (default baked).",
)
@click.option("--embed", "head_mode", flag_value=EMBED, help="Short for --head-mode embed.")
@click.option("--skip-unreadable", is_flag=True, default=None, help="Leave out photos that cannot be decoded.")
@click.option("--outputs", metavar="NAMES", help="What the graph gives, out of logits,embedding,probabilities,tokens.")
@click.option("--config", "config_file", type=_PATH, metavar="FILE.toml", help="Settings; flags win over them.")
@click.option(
    "--opset",
    type=click.Choice(list(map(str, OPSETS))),
    help="ONNX opset (default 18); from 23 on attention is one operator.",
)
@click.option("--precision", help="fp32, fp16, bf16, int8, int8-dynamic, int8-weights, int8-fp16, fp8 or auto.")
@click.option("--target", type=click.Choice(TARGETS), help="For --precision auto (default: what this machine has).")
@click.option("--max-drop", type=float, metavar="POINTS", help="For auto: accuracy that may be lost (default 0.1).")
@click.option("--io-dtype", type=click.Choice(IO_DTYPES), help="Of the graph's input and outputs (default fp32).")
@click.option("--calib-data", type=_PATH, metavar="DIR", help="Pictures to calibrate int8 and fp8 on (default: shots).")
@click.option("--calib-pictures", type=int, help="At most so many of them (default 256).")
@click.option("--full-range", is_flag=True, default=None, help="Finer int8 weights: slower on CPUs without VNNI.")
@click.option("--pin", multiple=True, metavar="LAYER", help="Keep a layer in fp32; may be given several times.")
@click.option("--repair-minutes", type=float, help="Budget to find layers that must stay in fp32 (default 15).")
@click.option(
    "--gate", "gates", multiple=True, metavar="NAME=VALUE", help="Change a gate; docs/precision.md lists them."
)
@click.option("--verify-data", type=_PATH, metavar="DIR", help="Pictures to verify on (default: the shots).")
@click.option(
    "--reference/--no-reference", default=None, help="Carry some of these pictures, for `calipso check` (default: yes)."
)
@click.option("--seed", type=int, help="Of the augmentation (default 0).")
@click.option("--feature-cache", type=_PATH, metavar="DIR", help="Keeps encoded photos between runs.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace an existing bundle.")
@click.option("--force", is_flag=True, default=None, help="Write the bundle even if a gate fails, marked so.")
@click.option("-o", "--output", type=_PATH, metavar="OUT.calipso", help="The bundle to write.")
def export_command(config_file: Path | None, **flags: Any) -> None:
    """Export an open_clip model, class names and photos as one verified ONNX graph."""
    config = _config(config_file, flags)
    console = plain_console()
    with needs_the_exporter(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CalipsoWarning)
        from calipso_export import export
        from calipso_runtime.parity import FailedParityError

        try:
            with progress_bars(Console(stderr=True)) as report:
                manifest, parity = export(config, report)
        except FailedParityError as error:
            _print(console, error.parity)
            raise
    console.print(_head_table(manifest))
    if candidates := candidate_rows(manifest.few_shot):
        console.print(_candidate_table(candidates))
    _print(console, parity)
    skipped = [f"left out: {photo}" for photo in parity.document["skipped_photos"]]
    for line in (
        *confidence_lines(manifest.confidence),
        *precision_lines(manifest, parity.document),
        *skipped,
    ):
        console.print(line, soft_wrap=True)
    for warning in caught:
        if issubclass(warning.category, CalipsoWarning):
            click.echo(f"warning: {warning.message}", err=True)
    if "text_tower" in manifest.model["weights"]:
        console.print("the text tower was not loaded: its features come from a file")
    if manifest.model["weights"]["source"] == "random":
        console.print("the weights are random: this bundle measures, it does not classify", style="red")
    console.print(f"wrote {config.output}", soft_wrap=True)


@click.command("verify")
@click.argument("bundle", type=_PATH)
@click.option("--data", type=_PATH, metavar="DIR", help="Pictures; in folders named like classes, accuracy is shown.")
@click.option("--checkpoint", type=_PATH, metavar="FILE", help="The weights, where the bundle came from a file.")
@click.option("--model", help="The model's configuration (.json), where the bundle came from one.")
@click.option(
    "--text-weights", type=_PATH, metavar="FILE", help="The text features, where the bundle has such a file's."
)
@click.option("--tokenizer", type=_PATH, metavar="DIR", help="A Hugging Face tokenizer's files, where it is one.")
@click.option("--text-model", type=_PATH, metavar="DIR", help="A Hugging Face text model's config.json, likewise.")
@click.option("--backend", default="auto", show_default=True, help="Engine to verify.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as JSON.")
def verify_command(bundle: Path, as_json: bool, **flags: Any) -> None:  # noqa: FBT001
    """Compare a bundle's file with eager PyTorch again; exit code 1 if a gate fails."""
    with needs_the_exporter():
        from calipso_export.reverify import reverify

        with progress_bars(Console(stderr=True)) as report:
            parity = reverify(bundle, progress=report, **flags)
    if as_json:
        Console(soft_wrap=True).print_json(data=parity.as_json())
    else:
        _print(plain_console(), parity)
    if parity.failures:
        failures = "\n  ".join(parity.failures)
        message = f"{bundle} does not answer like eager PyTorch:\n  {failures}"
        raise ParityError(message)


def _config(config_file: Path | None, flags: dict[str, Any]) -> ExportConfig:
    """Settings of the file, with the flags that were given over them."""
    given = {name: value for name, value in flags.items() if value is not None}
    if "classes" in given:
        given["classes"] = read_classes(given["classes"])
    if "outputs" in given:
        given["outputs"] = tuple(name.strip() for name in given["outputs"].split(","))
    given = {name: value for name, value in given.items() if value != ()}
    if "gates" in given:
        given["gates"] = dict(_gate(text) for text in given["gates"])
    given |= {name: int(given[name]) for name in ("opset", "views") if name in given}
    settings = read_config(config_file) if config_file is not None else {}
    if set(WEIGHTS) & set(given):
        # A flag chooses other weights: the file's choice must not stand beside it.
        settings = {name: value for name, value in settings.items() if name not in WEIGHTS}
    settings |= given
    needed = ("model", "output") if settings.get("head_mode") in (OPEN, EMBED) else ("model", "classes", "output")
    missing = [f"--{name}" for name in needed if name not in settings]
    if missing:
        message = f"missing {', '.join(missing)}: give them as flags or in --config FILE.toml"
        raise UsageError(message)
    _check_calip(settings)
    try:
        return ExportConfig(**settings)
    except TypeError as error:
        message = f"{config_file} has a setting of the wrong type: {error}"
        raise UsageError(message) from error


def _check_calip(settings: dict[str, Any]) -> None:
    """Where it is asked for by name; where it is not, a head that is an input goes without."""
    mode = settings.get("head_mode")
    if settings.get("calip") and mode in (AS_INPUTS, OPEN, EMBED):
        raise UsageError(NO_CALIP if mode == AS_INPUTS else NO_OPEN_CALIP)


def _gate(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        message = f"--gate is {text!r}: expected NAME=VALUE, such as min_same_top1=0.99"
        raise UsageError(message) from error


@contextlib.contextmanager
def needs_the_exporter() -> Iterator[None]:
    """This file comes with the runtime's wheel: torch and the rest come with an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"this command needs {error.name}, which is not installed: pip install 'calipso[export,ort]'"
        raise CalipsoError(message) from error


def precision_lines(manifest: "Manifest", document: dict[str, Any]) -> list[str]:
    """What became of the precision: tried, calibrated, pinned."""
    lines = [
        f"{point['precision']}: {'failed' if point['failures'] else 'passed'}, {point['cpu_time_to_fp32']:.2f} of the "
        f"time of fp32 on this CPU, {100 * point['drop']:.2f} points lost"
        for point in document.get("frontier", [])
        if point["bytes"] is not None
    ]
    if manifest.precision == "fp32":
        return lines
    record = manifest.graph["precision"]
    lines.append(
        f"precision: {manifest.precision}, {len(record['kept_in_fp32'])} nodes kept in fp32 beside the islands"
    )
    if calibration := record["calibration"]:
        lines.append(f"ranges: {calibration['methods']['chosen']}, {calibration['pictures']} pictures")
    repair = document.get("repair") or {"pinned": ()}
    lines += [f"pinned: {each['node']}: {each['reason']}" for each in repair["pinned"]]
    return lines


def _print(console: Console, parity: "Parity") -> None:
    print_parity(console, parity, remarks=made_anew(parity.document))


def _head_table(manifest: "Manifest") -> Table:
    labels = "any labels" if manifest.takes_labels else f"{len(manifest.labels)} classes"
    table = Table(title=f"{manifest.model['name']}, {labels}", title_justify="left")
    for column in ("head", "parameters", "chosen by"):
        table.add_column(column)
    table.add_row("zero-shot", f"scale {manifest.model['logit_scale']:.2f}", manifest.prompts["source"])
    few_shot = manifest.few_shot
    records = [(few_shot_class(few_shot["name"]).title, few_shot), ("CALIP", manifest.head["calip"])]
    if "calip_fs" in manifest.head:
        records.append(("CALIP-FS", manifest.head["calip_fs"]))
    for title, record in records:
        # How many keys, of how many views, is no parameter.
        numbers = (f"{key} {value:g}" for key, value in record.items() if isinstance(value, float))
        table.add_row(title, ", ".join(numbers) if record["used"] else "not used", _chosen(record))
    return table


def _candidate_table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(title="heads, cross-validated on the shots", title_justify="left")
    for column in CANDIDATE_COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table


def _chosen(record: dict[str, Any]) -> str:
    chosen = record.get("chosen")
    if chosen is None:
        return str(record["reason"])
    if "accuracy_with" not in chosen:
        return str(chosen["method"])
    return (
        f"{chosen['method']}: {chosen['accuracy_without']:.2%} -> {chosen['accuracy_with']:.2%} "
        f"on {chosen['photos']} photos"
        + (f"; at the edge of the grid: {', '.join(chosen['at_edge'])}" if chosen["at_edge"] else "")
    )
