"""The `calipso` command: the group, its errors, and the sub-commands that other packages add."""

import os
import traceback
from typing import Any

import click

import calipso_runtime
from calipso_runtime.commands import plugins
from calipso_runtime.commands.build import build_command
from calipso_runtime.commands.check import check_command
from calipso_runtime.commands.classify import classify_command
from calipso_runtime.commands.doctor import doctor_command
from calipso_runtime.commands.embed import embed_command
from calipso_runtime.commands.inspect import inspect_command
from calipso_runtime.commands.ship import ship_command
from calipso_runtime.commands.sign import sign_command
from calipso_runtime.commands.teach import forget_command, relabel_command, teach_command
from calipso_runtime.commands.triton import triton_command
from calipso_runtime.errors import CalipsoError

DEBUG_VARIABLE = "CALIPSO_DEBUG"
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class CalipsoGroup(click.Group):
    """Turns a CalipsoError into one line and its exit code, and finds sub-commands in entry points."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command; Ctrl-C leaves quietly with exit code 130."""
        try:
            return super().invoke(ctx)
        except CalipsoError as error:
            _tell(error)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(_INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, our own and the plugins', which are not imported for it."""
        return sorted({*super().list_commands(ctx), *plugins.names()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Our own commands come first: a plugin cannot replace them."""
        own = super().get_command(ctx, cmd_name)
        return own if own is not None else plugins.command(cmd_name)


def _tell(error: CalipsoError) -> None:
    """One line on stderr; the traceback before it only where it is asked for."""
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(f"error: {error}", err=True)


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if value and not context.resilient_parsing:
        click.echo(f"calipso {calipso_runtime.__version__}")
        context.exit()


@click.group(cls=CalipsoGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def calipso() -> None:
    """CLIP classifiers as one verified ONNX graph.

    Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted. CALIPSO_DEBUG=1 shows tracebacks.
    """


calipso.add_command(build_command)
calipso.add_command(classify_command)
calipso.add_command(embed_command)
calipso.add_command(inspect_command)
calipso.add_command(check_command)
calipso.add_command(doctor_command)
calipso.add_command(ship_command)
calipso.add_command(sign_command)
calipso.add_command(teach_command)
calipso.add_command(forget_command)
calipso.add_command(relabel_command)
calipso.add_command(triton_command)
