"""A plan held against two records: what the one foretells of it, what the other saw under it."""

from __future__ import annotations

from numwatch.plan import Plan, Prediction
from numwatch.recommend.outcome import outcome_of
from numwatch.recommend.proof import SlotProof
from numwatch.recommend.reading import read_histories
from numwatch.record import Run
from numwatch.record.totals import slot_totals


def foretell(run: Run, plan: Plan) -> dict[str, Prediction]:
    """Returns what a run's record says a plan would do, by slot.

    Operands without a recorded row, or whose scale depends on the order of steps (delayed), are
    left out: `numwatch replay` tells of the latter.
    """
    histories = read_histories(run)
    found = {}
    for module, role, operand in plan.operands():
        slot = f"{module}:{role}"
        if slot not in histories or operand.recipe.name == "delayed":
            continue
        outcome = outcome_of(histories[slot], operand.format, operand.recipe)
        if outcome is not None:
            found[slot] = outcome.predicted
    return found


def observed(run: Run, predictions: dict[str, Prediction]) -> tuple[SlotProof, ...]:
    """Returns predictions beside what the casts of a run under the plan did.

    Args:
        run: The record of a run whose planned operands were really cast, or emulated.
        predictions: By slot.
    """
    totals = slot_totals(run.tensor_batches())
    rows = []
    for slot, predicted in predictions.items():
        cast = totals[slot].cast if slot in totals else None
        if cast is None or not cast.nonzeros:
            continue
        rows.append(
            SlotProof(
                slot=slot,
                format=cast.format,
                predicted_flushed=predicted.flushed,
                predicted_saturated=predicted.saturated,
                flushed=cast.flushed / cast.nonzeros,
                saturated=cast.saturated / cast.nonzeros,
            )
        )
    return tuple(sorted(rows, key=lambda row: -max(row.flushed, row.predicted_flushed.value)))
