"""The commands that need no record: formats and demo."""

from pathlib import Path
from typing import Annotated

import typer

from numwatch.cli.shared import AsJson, print_json, print_lines


def formats(as_json: AsJson = False) -> None:
    """Print the number formats numwatch knows, with their ranges and where they flush to zero."""
    from numwatch.formats import format_rows

    if as_json:
        print_json(format_rows())
        return
    from numwatch.report.formats_table import format_lines

    print_lines(format_lines(format_rows()))


def demo(
    precision: Annotated[
        str,
        typer.Option(help="16-mixed, bf16-mixed, 16-true, bf16-true, fp8 or 32-true."),
    ] = "16-mixed",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps; by default what fits in minutes.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Where the run's logs and record go.")] = Path(
        "demo-run"
    ),
) -> None:
    """Train a small GPT on text that comes with Python, watched, and print the report.

    On a CPU `16-mixed` is real FP16 autocast with a real gradient scaler.
    """
    from numwatch.demo import run_demo

    run_demo(precision=precision, steps=steps, device=device, out=out)
