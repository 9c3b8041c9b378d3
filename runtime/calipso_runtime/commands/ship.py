"""`calipso ship`: a folder with all that a device needs."""

from pathlib import Path
from typing import Any

import click

from calipso_runtime.commands.build_options import build_options, options_of
from calipso_runtime.ship.kit import RTX, TARGETS, Order, ship

_PATH = click.Path(path_type=Path)


@click.command("ship")
@click.argument("bundle", type=_PATH)
@click.option("--target", type=click.Choice(TARGETS), required=True, help="The kind of device.")
@click.option("-o", "--output", type=_PATH, required=True, metavar="DIR", help="Folder to write.")
@click.option("--with-engines", is_flag=True, help="Take the engines along that were built already.")
@click.option("--wheel", type=_PATH, metavar="FILE", help="The runtime's wheel (default: built from the source tree).")
@build_options
@click.option("--overwrite", is_flag=True, help="Replace an existing kit.")
def ship_command(
    *,
    bundle: Path,
    target: str,
    output: Path,
    with_engines: bool,
    wheel: Path | None,
    overwrite: bool,
    **flags: Any,
) -> None:
    """Write a kit that installs BUNDLE on a device, builds its engine there, checks it and times it.

    A Jetson has JetPack's TensorRT, a server gets pip's, and rtx gets TensorRT for RTX. The options of the build are
    those of `calipso build`.
    """
    options = options_of(**flags, ahead=target == RTX)
    order = Order(bundle=bundle, target=target, options=options, with_engines=with_engines, wheel=wheel)
    manifest = ship(order, output, overwrite=overwrite)
    if manifest.parity == "failed":
        click.echo(f"warning: {bundle} failed its parity gate when it was exported: see its parity.json", err=True)
    click.echo(f"wrote {output}: copy it to the device, and run install.sh there")
