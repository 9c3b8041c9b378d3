"""`calipso embed`: pictures and texts in, their features out, for search."""

from pathlib import Path
from typing import Any

import click
import numpy as np

from calipso_runtime.asking import DEFAULT_BATCH
from calipso_runtime.backends import ALL_BACKENDS, AUTO
from calipso_runtime.commands.collect import collect
from calipso_runtime.commands.sign import signature_option
from calipso_runtime.commands.texts import read_texts
from calipso_runtime.commands.warned import warned
from calipso_runtime.embedder import Embedder
from calipso_runtime.errors import ImageError, OutputPathError, UsageError
from calipso_runtime.loading import load_embedder
from calipso_runtime.tokenizer import WARN

_SOME_UNREADABLE = 1


@click.command("embed")
@click.argument("bundle", type=click.Path())
@click.argument("images", nargs=-1, type=click.Path())
@click.option("--texts", metavar="FILE|a,b,c", help="Texts too, one a line or inline; encoded as they are.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT.npz", help="The file.")
@click.option("--backend", type=click.Choice([AUTO, *ALL_BACKENDS]), default=AUTO, show_default=True, help="Engine.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=DEFAULT_BATCH, show_default=True, help="Pictures computed together."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the engine. [default: one per core]")
@signature_option
def embed_command(
    *,
    bundle: str,
    images: tuple[str, ...],
    texts: str | None,
    output: Path,
    backend: str,
    batch: int,
    threads: int | None,
    require_signature: Path | None,
) -> None:
    """Write the features of IMAGES, and of --texts, by BUNDLE, which has a text tower.

    The file holds `image` float32 [N,D] with `images`, their paths, and `text` float32 [M,D] with `texts`; all are
    L2-normalised. IMAGES are files, folders (searched recursively) or quoted patterns. A picture that cannot be read is
    told on stderr and left out, and the exit code is 1.
    """
    asked = read_texts(texts)
    if not images and asked is None:
        message = "there is nothing to embed: name pictures, or give --texts"
        raise UsageError(message)
    paths = collect(images) if images else []
    with (
        warned(),
        load_embedder(bundle, backend=backend, threads=threads, require_signature=require_signature) as embedder,
    ):
        arrays, unreadable = _pictures(embedder, paths, batch)
        if asked is not None:
            arrays |= {"text": embedder.text(asked, truncation=WARN), "texts": np.array(asked, dtype=np.str_)}
    _write(output, arrays)
    kept = ", ".join(f"{name} {list(arrays[name].shape)}" for name in ("image", "text") if name in arrays)
    click.echo(f"wrote {output}: {kept}")
    if unreadable:
        click.echo(f"error: {unreadable} of {len(paths)} pictures could not be read", err=True)
        click.get_current_context().exit(_SOME_UNREADABLE)


def _pictures(embedder: Embedder, paths: list[str], batch: int) -> tuple[dict[str, Any], int]:
    """Arrays for the file, and how many pictures could not be read."""
    if not paths:
        return {}, 0
    read, features = [], []
    for path, feature in embedder.image_stream(paths, batch=batch):
        if isinstance(feature, ImageError):
            click.echo(f"error: {' '.join(str(feature).split())}", err=True)
            continue
        read.append(path)
        features.append(feature)
    found = np.stack(features) if features else np.empty((0, embedder.width), np.float32)
    return {"image": found, "images": np.array(read, dtype=np.str_)}, len(paths) - len(read)


def _write(output: Path, arrays: dict[str, Any]) -> None:
    """The whole file or nothing."""
    partial = output.with_name(f"{output.name}.partial")
    try:
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        message = f"{output} cannot be written: {error.strerror or error}"
        raise OutputPathError(message) from error
