"""Which slots a run's charts name: few, the worst, and the same ones throughout."""

from collections.abc import Mapping, Sequence

from numwatch.report.figures import SlotFigures, rows_figures
from numwatch.report.parameter_slots import is_parameters
from numwatch.report.scalars import role_scalars, step_scalars, tensor_scalars, weight_scalars
from numwatch.report.tb_tags import STEP_GROUP
from numwatch.report.verdict import TROUBLES
from numwatch.report.weight_scalars import of_own_storage
from numwatch.snapshot import SlotInfo, Snapshot, path_of, role_of
from numwatch.step_entries import Update
from numwatch.tensor_rows import Rows

# With 6 roles, 15 tags a role, 7 a named slot with a histogram, 4 storage formats of 4 tags, and
# some 30 others this keeps a run below 200 tags.
NAMED_SLOTS = 7
NAMED_PARAMETERS = 3
PARAMETER_HISTOGRAMS = 4
"""Histograms for so many kinds of parameters' slots: updates and most optimizers' state."""


class Curation:
    """The scalars of a whole run, under a bounded set of tags.

    Stateful shell over `report.scalars`: the first full rows of each role give their worst slot a
    name of its own; what places are left go, one a snapshot, to slots that get into trouble later.
    A slot once named keeps its tags to the end of the run. So do the parameters that lost most of
    their updates in the first step that has any.

    Attributes:
        named: Names of the slots shown, in the order in which they were chosen.
        parameters: Names of the parameters shown.
        parameter_roles: Kinds of parameters' slots that have a histogram.
        skipped_steps: Skipped steps since this object was made. TensorBoard keeps a random sample
            of long series, in which a running total survives and single skips do not.
    """

    def __init__(self, capacity: int = NAMED_SLOTS) -> None:
        self.named: tuple[str, ...] = ()
        self.parameters: tuple[str, ...] = ()
        self.parameter_roles: tuple[str, ...] = ()
        self.skipped_steps = 0
        self._capacity = capacity
        self._roles: set[str] = set()

    def scalars(self, snapshot: Snapshot, slots: Mapping[str, SlotInfo]) -> dict[str, float]:
        """Returns tag → value of the next step; to be called once a step, in order of steps."""
        rows = [] if snapshot.rows is None else list(rows_figures(snapshot.rows, slots))
        if snapshot.rows is not None and snapshot.rows.full:
            self._name(rows)
            self._choose_roles(snapshot.rows)
        if snapshot.updates and not self.parameters:
            self._name_parameters(snapshot.updates, slots)
        self.skipped_steps += snapshot.scalars.skipped
        return {
            **step_scalars(snapshot.scalars, rows),
            f"{STEP_GROUP}/skipped_steps_total": float(self.skipped_steps),
            **role_scalars(rows),
            **tensor_scalars(row for row in rows if row.slot in self.named),
            **weight_scalars(snapshot, slots, self.parameters),
        }

    def _name(self, rows: Sequence[SlotFigures]) -> None:
        roles = dict.fromkeys(role_of(row.slot) for row in rows)
        chosen = [
            max((row for row in rows if role_of(row.slot) == role), key=_badness)
            for role in roles
            if role not in self._roles
        ]
        self._roles.update(roles)
        if not chosen:
            unnamed = [row for row in rows if row.slot not in self.named]
            worst = max(unnamed, key=_badness, default=None)
            chosen = [worst] if worst is not None and worst.verdict in TROUBLES else []
        self.named = (*self.named, *(row.slot for row in chosen))[: self._capacity]

    def _name_parameters(self, updates: Sequence[Update], slots: Mapping[str, SlotInfo]) -> None:
        own = of_own_storage(updates, slots)
        worst = sorted(own, key=lambda update: update.swallowed or 0.0, reverse=True)
        self.parameters = tuple(path_of(update.slot) for update in worst[:NAMED_PARAMETERS])

    def _choose_roles(self, rows: Rows) -> None:
        seen = (role_of(slot) for slot in rows.slots if is_parameters(slot))
        known = dict.fromkeys((*self.parameter_roles, *seen))
        self.parameter_roles = tuple(known)[:PARAMETER_HISTOGRAMS]


def _badness(row: SlotFigures) -> tuple[float, ...]:
    return row.badness
