"""The commands that ask what to use instead: recommend, export, prove."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from numwatch.cli.shared import (
    AsJson,
    RunPath,
    damage,
    print_json,
    print_lines,
    progress_bar,
    reading,
)
from numwatch.errors import NumwatchError

DEMO_STEPS = 400
PlanPath = Annotated[Path, typer.Argument(help="A `plan.yaml`, as `numwatch recommend` writes it.")]


def recommend(
    run: RunPath,
    as_json: AsJson = False,
    target: Annotated[
        str, typer.Option(help="amp, fp8, mxfp8, mxfp4, nvfp4 or int8-weights.")
    ] = "fp8",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the plan there, as YAML.")
    ] = None,
    reasons: Annotated[
        bool, typer.Option("--reasons", help="Tell the reason of every operand's choice.")
    ] = False,
) -> None:
    """Say which format and scale each tensor of a run could train in, and why.

    Each GEMM operand gets a format and a recipe for its scale with what it would lose; modules that
    should stay as they are, the reason. `--target amp` says FP16 or BF16, and the loss scale.

        numwatch recommend demo-run --target fp8 -o plan.yaml
        numwatch prove plan.yaml --demo
    """
    from numwatch.plan.exports import export as exported
    from numwatch.recommend import recommend as find
    from numwatch.record import open_run
    from numwatch.report.plan_lines import plan_lines

    record = open_run(run)
    with reading(record.rows("tensors")) as progress:
        plan = find(record, target, progress)
    if out is not None:
        plan.save(out)
    if as_json:
        typer.echo(exported(plan, "json"))
    else:
        print_lines(plan_lines(plan, reasons=reasons))
        if out is not None:
            print_lines([Text(f"written to {out}", style="dim")])
    if record.problems:
        raise NumwatchError(
            f"{damage(record.problems)} in {record.path}; the plan rests on what is left"
        )


def export(
    plan: PlanPath,
    to: Annotated[
        str,
        typer.Option(help="torchao, transformer-engine, megatron, amp, lightning or json."),
    ],
) -> None:
    """Print a plan as the library that trains it wants it: code, flags or JSON."""
    from numwatch.plan import load_plan
    from numwatch.plan.exports import export as exported

    typer.echo(exported(load_plan(plan), to))


def prove(
    plan: PlanPath,
    as_json: AsJson = False,
    script: Annotated[
        str | None,
        typer.Option(
            help="`train.py:make`: a file, and a function in it that returns what is trained."
        ),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Train numwatch's own small GPT.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; each trains twice.")] = 3,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Optimizer steps of a run; as the script says.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Logged metric to compare, the lower the better; by default a val…loss."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Relative rise of it that the plan may cost.")
    ] = 0.01,
    real: Annotated[
        bool, typer.Option("--real", help="In the real formats through torchao, not emulated.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the runs' records go.")] = Path("proof"),
) -> None:
    """Train with and without a plan, over the same batches and seeds, and say whether it holds.

    The function returns a LightningModule, or a tuple of it, its training batches, its validation
    batches and a dictionary of Trainer arguments; the latter three may be left out from the end.
    Exits with 1 where the plan does not hold.

        numwatch prove plan.yaml --script train.py:make --steps 500
    """
    from numwatch.callbacks.prove import prove as train
    from numwatch.plan import load_plan
    from numwatch.report.plain import plain
    from numwatch.report.proof_lines import proof_lines
    from numwatch.script import made_by

    if demo == (script is not None):
        raise NumwatchError("say what to train, with either --script FILE:FUNCTION or --demo")
    chosen = load_plan(plan)
    if script is None:
        from numwatch.demo.subject import demo_subject

        make: Callable[[], object] = demo_subject
        steps = steps or DEMO_STEPS
    else:
        make = partial(made_by, script)
    with _training(2 * seeds) as progress:
        proof = train(
            chosen,
            make,
            out=out,
            seeds=seeds,
            steps=steps,
            metric=metric,
            tolerance=tolerance,
            real=real,
            progress=progress,
        )
    if as_json:
        print_json({**plain(proof), "verdict": proof.verdict, "rise": plain(proof.rise)})
    else:
        print_lines(proof_lines(proof))
    if proof.verdict != "holds":
        raise typer.Exit(1)


@contextmanager
def _training(runs: int) -> Iterator[Callable[[str], None]]:
    """A progress bar over the runs; without what Lightning would say of each."""
    from numwatch.demo.quiet import quiet

    with quiet(notices=False), progress_bar("training", runs) as update:
        begun = 0

        def begin(what: str) -> None:
            nonlocal begun
            update(description=what, completed=begun)
            begun += 1

        yield begin
