"""The command `numwatch`: its subcommands, and how it ends."""

import os
import sys
from typing import Annotated, Any

import typer

from numwatch.cli.alone import demo, formats
from numwatch.cli.looking import compare, diagnose, report, reproduce
from numwatch.cli.planning import export, prove, recommend
from numwatch.cli.replaying import replay
from numwatch.errors import NumwatchError

# Newer versions of typer bring a click of their own.
_USAGE_ERROR: Any = typer.BadParameter.__base__
_BAD_INPUT = 2
_INTERRUPTED = 130

app = typer.Typer(
    name="numwatch",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs the command; bad input gives one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except _USAGE_ERROR as error:
        code = _refuse(f"{error.format_message()} (see `numwatch --help`)")
    except NumwatchError as error:
        code = _refuse(str(error))
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except BrokenPipeError:
        # `numwatch report | head`: nobody reads on, which is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


@app.callback(invoke_without_command=True)
def numwatch(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print numwatch's version.", is_eager=True)
    ] = False,
) -> None:
    """Watches the numbers of a training run in FP16, BF16 or FP8, and says what it saw.

    Add `NumericsMonitor()` from `numwatch.callbacks` to a Lightning Trainer, train, then:

        numwatch report lightning_logs/version_0

    Nothing to watch at hand? `numwatch demo` trains a small GPT in real FP16.
    """
    if show_version:
        from numwatch.version import __version__

        typer.echo(f"numwatch {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (
    demo,
    report,
    diagnose,
    compare,
    reproduce,
    recommend,
    replay,
    export,
    prove,
    formats,
):
    app.command()(command)


def _refuse(text: str) -> int:
    typer.echo(f"numwatch: {' '.join(text.split())}", err=True)
    return _BAD_INPUT
