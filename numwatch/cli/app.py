"""The command `numwatch`."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from numwatch.errors import NumwatchError, near

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
_Run = Annotated[
    Path,
    typer.Argument(
        help="The run's log directory, its folder `numwatch`, or any directory above just one."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


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
        typer.echo(f"numwatch {version('numwatch')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def report(
    run: _Run,
    as_json: _Json = False,
    epoch: Annotated[
        int | None, typer.Option(help="Just this epoch; the whole run by default.")
    ] = None,
    worst: Annotated[int, typer.Option(min=1, help="How many tensors to show.")] = 12,
    loss_scale: Annotated[
        bool,
        typer.Option(
            "--loss-scale",
            help="Instead, what FP16 gradients flush and overflow at each loss scale, 2^k by 2^k.",
        ),
    ] = False,
    updates: Annotated[
        bool,
        typer.Option(
            "--updates",
            help="Instead, for each parameter what BF16, FP16 and FP8 weights lose of its updates.",
        ),
    ] = False,
    states: Annotated[
        bool,
        typer.Option(
            "--states",
            help="Instead, the optimizer's state: eps and decay as its dtype has them, g² flushed.",
        ),
    ] = False,
    shadow: Annotated[
        bool,
        typer.Option(
            "--shadow",
            help="Instead, what shadow steps measured of each gradient, beside the estimate.",
        ),
    ] = False,
) -> None:
    """Print what a run's tensors looked like, the worst ones first.

    Reads the record alone, so it works while the run is under way, after a crash, and years later.
    Of a damaged record it prints what is left, and exits with 2. `--json` gives all of it, tables
    included.
    """
    from numwatch.record import open_run
    from numwatch.report import print_summary, summarize
    from numwatch.report.summary import epochs
    from numwatch.report.tables import TABLES, table_lines

    record = open_run(run)
    if epoch is not None and epoch not in (known := epochs(record)):
        held = f"epochs {known[0]} to {known[-1]}" if known else "none"
        held += f", but {_damage(record.problems)}" if record.problems else ""
        raise NumwatchError(f"no epoch {epoch} in {record.path}: the record holds {held}")
    summary = summarize(record, epoch=epoch, worst=worst)
    asked = dict(zip(TABLES, (loss_scale, updates, states, shadow), strict=True))
    tables = [name for name, wanted in asked.items() if wanted]
    if as_json:
        _print_json(summary.as_dict())
    elif tables:
        _print_lines(table_lines(summary, tables))
    else:
        print_summary(summary, Console())
    if summary.problems:
        raise NumwatchError(
            f"{_damage(summary.problems)} in {record.path}; the report rests on what is left"
        )


@app.command()
def diagnose(
    run: _Run,
    as_json: _Json = False,
    fail_on: Annotated[
        str,
        typer.Option(
            help="Exit with 1 where a finding is this bad or worse: critical, warning, info, never."
        ),
    ] = "critical",
    gemms: Annotated[
        bool,
        typer.Option(
            "--gemms",
            help="Instead, the GEMMs of the audited step: which formats' multiples they meet.",
        ),
    ] = False,
) -> None:
    """Say what went wrong in a run: the first cause, its evidence, what to do about it.

    What follows from a cause is told below it. Reads the record alone, so it works while the run is
    under way, after a crash, and years later. Exits with 1 where a finding reaches `--fail-on`.
    """
    from numwatch.diagnose import diagnose as find
    from numwatch.diagnose.finding import SEVERITIES
    from numwatch.diagnose.gemms import gemm_table
    from numwatch.record import open_run
    from numwatch.report.finding_lines import diagnosis_lines, flattened
    from numwatch.report.gemm_lines import gemm_lines, gemm_rows
    from numwatch.report.plain import plain
    from numwatch.report.terminal import text_width

    allowed = (*SEVERITIES, "never")
    if fail_on not in allowed:
        raise NumwatchError(
            f"--fail-on is one of {', '.join(allowed)}; got {fail_on!r}{near(fail_on, allowed)}"
        )
    record = open_run(run)
    if gemms:
        products = gemm_table(record.operations())
        if as_json:
            _print_json({"gemms": gemm_rows(products)})
        else:
            _print_lines(gemm_lines(products))
        if record.problems:
            raise NumwatchError(f"{_damage(record.problems)} in {record.path}")
        return
    with _reading(record.rows("tensors")) as progress:
        findings = find(record, progress=progress)
    if as_json:
        _print_json({"findings": plain(findings), "problems": list(record.problems)})
    else:
        _print_lines(diagnosis_lines(findings, text_width(Console())))
    if record.problems:
        raise NumwatchError(
            f"{_damage(record.problems)} in {record.path}; the diagnosis rests on what is left"
        )
    reached = allowed[: allowed.index(fail_on) + 1]
    if fail_on != "never" and any(each.severity in reached for each in flattened(findings)):
        raise typer.Exit(1)


@app.command()
def compare(
    run: _Run,
    other: _Run,
    as_json: _Json = False,
    worst: Annotated[int, typer.Option(min=0, help="How many figures after the first.")] = 12,
) -> None:
    """Say where two runs of one model part: in BF16 and in FP8, before and after a change.

    First the slot and step where amax, rms, the flushed share or the loss part by more than their
    own noise, in the order of steps and data flow; then the rest by size.
    """
    from numwatch.diagnose.compare import compare as find
    from numwatch.record import open_run
    from numwatch.report.comparison_lines import comparison_lines
    from numwatch.report.plain import plain

    first, second = open_run(run), open_run(other)
    with _reading(first.rows("tensors") + second.rows("tensors")) as progress:
        found = find(first, second, progress=progress)
    if as_json:
        _print_json(plain(found.as_dict()))
    else:
        _print_lines(comparison_lines(found, worst))
    problems = [*first.problems, *second.problems]
    if problems:
        raise NumwatchError(f"{_damage(problems)}; the comparison rests on what is left")


@app.command()
def reproduce(
    run: _Run,
    script: Annotated[
        str,
        typer.Option(
            help="`my_model.py:make_model`: a file, and a function in it that returns the model."
        ),
    ],
    as_json: _Json = False,
) -> None:
    """Run the failed step of a run's capsule again, and say whether it fails the same way.

    The function returns the LightningModule, or an nn.Module with `training_step(batch,
    batch_idx)`; weights, batch, random numbers, optimizer and scaler come from the capsule. Exits
    with 1 where anything comes out otherwise.
    """
    from numwatch.report.plain import plain
    from numwatch.reproduce import lines
    from numwatch.reproduce import reproduce as again

    found = again(run, script)
    if as_json:
        origin = found.origin.as_event() if found.origin else None
        compared = [{**plain(one), "outcome": one.outcome} for one in found.compared]
        _print_json({"same": found.same, "compared": compared, "origin": plain(origin)})
    else:
        for line in lines(found):
            typer.echo(line)
    if not found.same:
        raise typer.Exit(1)


@app.command()
def formats(as_json: _Json = False) -> None:
    """Print the number formats numwatch knows, with their ranges and where they flush to zero."""
    from numwatch.formats import format_rows

    if as_json:
        _print_json(format_rows())
        return
    from numwatch.report.formats_table import format_lines

    _print_lines(format_lines(format_rows()))


@app.command()
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


@contextmanager
def _reading(rows: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, in a terminal; gone when the reading is over."""
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=rows)
        yield lambda read: progress.advance(task, read)


def _print_lines(lines: Iterable[Text]) -> None:
    from numwatch.report.terminal import print_line

    console = Console()
    for line in lines:
        print_line(line, console)


def _print_json(content: object) -> None:
    typer.echo(json.dumps(content, indent=2, allow_nan=False))


def _damage(problems: Sequence[str]) -> str:
    return f"{len(problems)} part{'' if len(problems) == 1 else 's'} can't be read"


def _refuse(text: str) -> int:
    typer.echo(f"numwatch: {' '.join(text.split())}", err=True)
    return _BAD_INPUT


if __name__ == "__main__":
    main()
