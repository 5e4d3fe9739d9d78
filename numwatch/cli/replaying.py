"""The command that asks what another recipe would have done: replay."""

from typing import Annotated

import typer

from numwatch.cli.shared import AsJson, RunPath, damage, print_json, print_lines, reading
from numwatch.errors import NumwatchError


def replay(
    run: RunPath,
    grid: Annotated[
        list[str] | None, typer.Argument(help="Further `key=value,value` of --sweep.")
    ] = None,
    as_json: AsJson = False,
    recipe: Annotated[
        str,
        typer.Option(
            help="`delayed:history=16,margin=0`, `current`, `static:scale=64`, `rowwise`, `block`, "
            "`mx:rule=rceil`, `nvfp4`, `grad-scaler:init_scale=65536` or `megatron`."
        ),
    ] = "delayed",
    sweep: Annotated[
        str | None,
        typer.Option(help="Instead, a table over settings: `--sweep history=1,16 margin=0,1`."),
    ] = None,
    element: Annotated[
        str | None,
        typer.Option(
            "--format", help="One format for all; by default e4m3 forward and e5m2 backward."
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=1, help="How many operands to show.")] = 12,
) -> None:
    """Say what a recipe for scales that a run did not use would have done to its tensors.

    From the recorded amaxes and histograms: the scale in force at each step, what would have
    saturated and been flushed, how much headroom been wasted. Where amaxes were not recorded at
    every step it says what that leaves open.

        numwatch replay demo-run --recipe delayed:history=16,margin=0
        numwatch replay demo-run --recipe delayed --sweep history=1,16,1024 margin=0,1
    """
    from numwatch.recipes.spec import parse_any_recipe
    from numwatch.record import open_run
    from numwatch.replay import Replay, Replayer
    from numwatch.replay import grid as settings
    from numwatch.replay import sweep as ranked
    from numwatch.report.plain import plain
    from numwatch.report.replay_json import replay_dict
    from numwatch.report.replay_lines import replay_lines, sweep_lines

    if grid and sweep is None:
        raise NumwatchError(f"{' '.join(grid)}: settings come behind --sweep")
    record = open_run(run)
    recipes = [recipe] if sweep is None else settings(recipe, [sweep, *(grid or ())])
    with reading(record.rows("tensors")) as progress:
        replayer = Replayer(record, formats=element, progress=progress)

        def one(text: str) -> Replay:
            return replayer(parse_any_recipe(text))

        if sweep is None:
            found = one(recipe)
            content, lines = replay_dict(found), replay_lines(found, worst)
        else:
            rows = ranked(recipes, one)
            content, lines = {"settings": plain(rows)}, sweep_lines(rows)
    if as_json:
        print_json(content)
    else:
        print_lines(lines)
    if record.problems:
        raise NumwatchError(
            f"{damage(record.problems)} in {record.path}; the replay rests on what is left"
        )
