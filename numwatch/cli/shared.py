"""What all commands share: how they name a run, print, and tell of damage."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

RunPath = Annotated[
    Path,
    typer.Argument(
        help="The run's log directory, its folder `numwatch`, or any directory above just one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on standard error, in a terminal, gone when the work is over; yields its `update`."""
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:  # there many a rich prints an empty line for a bar it does not show
        yield lambda **_: None
        return
    with Progress(console=console, transient=True) as progress:
        yield partial(progress.update, progress.add_task(what, total=total))


@contextmanager
def reading(rows: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over the rows of a record."""
    with progress_bar("reading", rows) as update:
        yield lambda read: update(advance=read)


def print_lines(lines: Iterable[Text]) -> None:
    """Prints lines to the terminal."""
    from numwatch.report.terminal import print_line

    console = Console()
    for line in lines:
        print_line(line, console)


def print_json(content: object) -> None:
    """Prints plain values as strict JSON."""
    typer.echo(json.dumps(content, indent=2, allow_nan=False))


def damage(problems: Sequence[str]) -> str:
    """Returns how much of a record can't be read, in words."""
    return f"{len(problems)} part{'' if len(problems) == 1 else 's'} can't be read"
