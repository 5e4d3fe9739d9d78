"""The commands that read a record: report, diagnose, compare, reproduce."""

from typing import Annotated

import typer
from rich.console import Console

from numwatch.cli.shared import AsJson, RunPath, damage, print_json, print_lines, reading
from numwatch.errors import NumwatchError, near, printable


def report(
    run: RunPath,
    as_json: AsJson = False,
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
        held += f", but {damage(record.problems)}" if record.problems else ""
        raise NumwatchError(f"no epoch {epoch} in {record.path}: the record holds {held}")
    summary = summarize(record, epoch=epoch, worst=worst)
    asked = dict(zip(TABLES, (loss_scale, updates, states, shadow), strict=True))
    tables = [name for name, wanted in asked.items() if wanted]
    if as_json:
        print_json(summary.as_dict())
    elif tables:
        print_lines(table_lines(summary, tables))
    else:
        print_summary(summary, Console())
    if summary.problems:
        raise NumwatchError(
            f"{damage(summary.problems)} in {record.path}; the report rests on what is left"
        )


def diagnose(
    run: RunPath,
    as_json: AsJson = False,
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
            print_json({"gemms": gemm_rows(products)})
        else:
            print_lines(gemm_lines(products))
        if record.problems:
            raise NumwatchError(f"{damage(record.problems)} in {record.path}")
        return
    with reading(record.rows("tensors")) as progress:
        findings = find(record, progress=progress)
    if as_json:
        print_json({"findings": plain(findings), "problems": list(record.problems)})
    else:
        print_lines(diagnosis_lines(findings, text_width(Console())))
    if record.problems:
        raise NumwatchError(
            f"{damage(record.problems)} in {record.path}; the diagnosis rests on what is left"
        )
    reached = allowed[: allowed.index(fail_on) + 1]
    if fail_on != "never" and any(each.severity in reached for each in flattened(findings)):
        raise typer.Exit(1)


def compare(
    run: RunPath,
    other: RunPath,
    as_json: AsJson = False,
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
    with reading(first.rows("tensors") + second.rows("tensors")) as progress:
        found = find(first, second, progress=progress)
    if as_json:
        print_json(plain(found.as_dict()))
    else:
        print_lines(comparison_lines(found, worst))
    problems = [*first.problems, *second.problems]
    if problems:
        raise NumwatchError(f"{damage(problems)}; the comparison rests on what is left")


def reproduce(
    run: RunPath,
    script: Annotated[
        str,
        typer.Option(
            help="`my_model.py:make_model`: a file, and a function in it that returns the model."
        ),
    ],
    as_json: AsJson = False,
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
        print_json({"same": found.same, "compared": compared, "origin": plain(origin)})
    else:
        for line in lines(found):
            typer.echo(printable(line))
    if not found.same:
        raise typer.Exit(1)
