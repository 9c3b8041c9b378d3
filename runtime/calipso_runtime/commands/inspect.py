"""`calipso inspect`: what a bundle says of itself, after its hashes were checked."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from calipso_runtime.backends import AUTO, connect
from calipso_runtime.bundle import MANIFEST_FILE, Bundle, open_bundle
from calipso_runtime.commands.sign import signature_option
from calipso_runtime.manifest import Manifest, manifest_of_metadata
from calipso_runtime.signing import signature_path

_FIRST_LABELS = 10
_KIB = 1024
# A thousand classes have a thousand prompts: --json has them all.
_MOST_ENTRIES = 12
_KINDS = {
    "inputs": "labels can be taught",
    "open": "any labels: both towers in one graph",
    "embed": "any labels, and features: both towers, a graph each",
}
RANDOM_WEIGHTS = "RANDOM: these weights were never trained, and the answers mean nothing"


@click.command("inspect")
@click.argument("bundle", type=click.Path())
@signature_option
@click.option("--json", "as_json", is_flag=True, help="The manifest as JSON.")
def inspect_command(*, bundle: str, require_signature: Path | None, as_json: bool) -> None:
    """Check BUNDLE's hashes, and show what it says of itself."""
    opened = open_bundle(bundle, require_signature=require_signature)
    manifest = opened.manifest or _own_manifest(opened)
    if as_json:
        click.echo(json.dumps(manifest.as_json(), indent=2))
        return
    # Labels and prompts are data: "[red]" or ":cat:" in one is not markup.
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=False)
    console.print(_table(manifest, opened))


def _own_manifest(bundle: Bundle) -> Manifest:
    """A bare graph's own manifest, which takes an engine to read."""
    engine, _ = connect(bundle, backend=AUTO, threads=None)
    engine.close()
    return manifest_of_metadata(engine.metadata, source=str(bundle.path))


def _table(manifest: Manifest, bundle: Bundle) -> Table:
    table = Table(title=str(bundle.path), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in (*_rows(manifest), ("signature", _signature(bundle))):
        table.add_row(key, value)
    return table


def _signature(bundle: Bundle) -> str:
    if bundle.signed_by is not None:
        return f"verified: by {bundle.signed_by.path}"
    beside = signature_path(bundle.path / MANIFEST_FILE)
    return f"not verified: {beside.name} is there, --require-signature verifies it" if beside.is_file() else "none"


def _rows(manifest: Manifest) -> list[tuple[str, str]]:
    weights = manifest.model.get("weights", {})
    labels = ", ".join(manifest.labels[:_FIRST_LABELS])
    more = ", ..." if len(manifest.labels) > _FIRST_LABELS else ""
    rows = [("model", _words({key: value for key, value in manifest.model.items() if key != "weights"}))]
    if weights.get("source") == "random":
        rows.append(("WEIGHTS", RANDOM_WEIGHTS))
    rows += [
        ("weights", _words(weights)),
        ("kind", _KINDS.get(str(manifest.head.get("kind")), "labels fixed in the graph")),
        ("labels", f"{len(manifest.labels)}: {labels}{more}" if manifest.labels else "any, given by each call"),
        ("prompts", _words(manifest.prompts)),
        ("head", _words({key: value for key, value in manifest.head.items() if not isinstance(value, Mapping)})),
        *((key, _words(value)) for key, value in manifest.head.items() if isinstance(value, Mapping)),
        ("input", _words(manifest.input)),
        ("preprocess", _words(manifest.as_json()["preprocess"])),
        ("precision", manifest.precision),
        ("graph", _words(manifest.graph)),
        *([("tokenizer", _words(manifest.tokenizer))] if manifest.tokenizer else []),
        ("parity", manifest.parity),
        ("tools", _words(manifest.tools)),
    ]
    rows += [(name, _file(entry)) for name, entry in manifest.files.items()]
    return rows


def _file(entry: Mapping[str, object]) -> str:
    return f"{_size(int(str(entry.get('bytes', 0))))}  sha256 {str(entry.get('sha256', ''))[:12]}"


def _size(size_bytes: int) -> str:
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB"]
    while value >= _KIB and len(units) > 1:
        value /= _KIB
        units.pop(0)
    return f"{size_bytes} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _words(value: object) -> str:
    """A JSON value as one line of words; of long ones the beginning."""
    if isinstance(value, Mapping):
        parts = [f"{key}={_nested(item)}" for key, item in itertools.islice(value.items(), _MOST_ENTRIES)]
        return ", ".join(parts + ["..."] * (len(value) > _MOST_ENTRIES)) or "none"
    if isinstance(value, list | tuple):
        parts = [_nested(item) for item in value[:_MOST_ENTRIES]]
        return ", ".join(parts + ["..."] * (len(value) > _MOST_ENTRIES)) or "none"
    return "none" if value is None else str(value)


def _nested(value: object) -> str:
    return f"[{_words(value)}]" if isinstance(value, Mapping | list | tuple) else _words(value)
