"""The view of a run in TensorBoard; the record is the store, this is for looking at."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from numwatch.report.parameter_slots import is_parameters
from numwatch.report.tb_curation import Curation
from numwatch.report.tb_events import layout_summary, log2_histogram, scalar_summary, write_event
from numwatch.report.tb_layout import layout
from numwatch.report.tb_tags import role_histogram, tensor_histogram
from numwatch.snapshot import SlotInfo, Snapshot, role_of
from numwatch.stats import BINADES
from numwatch.tensor_rows import Rows

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardView:
    """Writes each step as one event: scalars, exponent histograms and, once, the chart layout.

    The tags of a run stay below 200 however many slots there are, see `Curation`.
    """

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer
        self._curation = Curation()
        self._last_step: int | None = None
        self._has_layout = False

    def write(self, snapshot: Snapshot, slots: Mapping[str, SlotInfo], step: int) -> None:
        """Writes `snapshot` at `step`.

        A step that is not above the last one written is left out: TensorBoard would throw away
        whatever it has from there on. Rows that hold amax alone give no histogram.
        """
        if self._last_step is not None and step <= self._last_step:
            return
        self._last_step = step
        summaries = [scalar_summary(self._curation.scalars(snapshot, slots))]
        if snapshot.rows is not None and snapshot.rows.full:
            named = self._curation.named
            roles = self._curation.parameter_roles
            summaries += histograms(snapshot.rows, named, roles)
            if not self._has_layout and len(snapshot.rows):
                modules = [slot for slot in snapshot.rows.slots if not is_parameters(slot)]
                summaries.append(layout_summary(layout(modules, named)))
                self._has_layout = True
        write_event(self._writer, summaries, step)


def histograms(
    rows: Rows, named: Collection[str], parameter_roles: Collection[str] = ()
) -> Iterator["Summary"]:
    """Yields one exponent histogram for each role, all its slots merged, and each named slot.

    Of the roles that parameters have, those in `parameter_roles` alone.
    """
    members: dict[str, list[int]] = {}
    for i, slot in enumerate(rows.slots):
        if is_parameters(slot) and role_of(slot) not in parameter_roles:
            continue
        members.setdefault(role_histogram(slot), []).append(i)
        if slot in named:
            members[tensor_histogram(slot)] = [i]
    for tag, indices in members.items():
        yield log2_histogram(tag, rows.counts[indices, :BINADES].sum(axis=0))
