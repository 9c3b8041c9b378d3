"""`calipso triton`: a model repository for NVIDIA's Triton Inference Server."""

from pathlib import Path

import click

from calipso_runtime.triton.repository import FORMS, KINDS, Serving, write_repository

_PATH = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)


@click.command("triton")
@click.argument("bundle", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, metavar="DIR", help="Model repository to write.")
@click.option("--name", help="Of the models, before -onnx, -tensorrt or -python. [default: the bundle's]")
@click.option(
    "--form",
    "forms",
    type=click.Choice(FORMS),
    multiple=True,
    help="Which models; may be given again. [default: onnx, and tensorrt where there are engines]",
)
@click.option("--instances", type=_POSITIVE, default=1, show_default=True, help="Copies that run side by side.")
@click.option("--kind", type=click.Choice(KINDS), default="auto", show_default=True, help="Devices of the instances.")
@click.option("--max-batch", type=_POSITIVE, default=32, show_default=True, help="Pictures computed together.")
@click.option("--delay-us", type=click.IntRange(min=0), default=500, show_default=True, help="Wait for a batch.")
@click.option("--top", type=_POSITIVE, default=5, show_default=True, help="Classes that the Python form answers.")
@click.option("--threads", type=_POSITIVE, help="CPU threads of an instance. [default: the engine's]")
@click.option("--overwrite", is_flag=True, help="Replace an existing repository.")
def triton_command(
    *,
    bundle: Path,
    output: Path,
    name: str | None,
    forms: tuple[str, ...],
    instances: int,
    kind: str,
    max_batch: int,
    delay_us: int,
    top: int,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Write a Triton model repository of BUNDLE.

    The forms onnx and tensorrt take and give the graph's own tensors; python takes pictures as files' bytes, and
    needs this runtime in the server's Python.
    """
    serving = Serving(
        name=name or bundle.resolve().stem,
        forms=forms,
        instances=instances,
        kind=kind,
        most=max_batch,
        delay_us=delay_us,
        top=top,
        threads=threads,
    )
    names = write_repository(bundle, serving, output, overwrite=overwrite)
    click.echo(f"wrote {output}: {', '.join(names)}. Serve it: tritonserver --model-repository {output}")
