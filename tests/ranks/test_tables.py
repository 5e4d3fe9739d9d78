"""What is added up over ranks is what one process would have measured of all of it."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.ranks.agreement import Agreement
from numwatch.ranks.join import Share, join
from numwatch.ranks.tensors import joined_rows, tensors_table
from numwatch.ranks.updates import joined_updates, updates_table
from numwatch.snapshot import REPLICATED, SlotInfo, Snapshot, StepScalars
from numwatch.stats import pack_row, tensor_stats
from numwatch.stats.updates import FIGURES, swallowing, update_shares
from numwatch.step_entries import Update
from numwatch.tensor_rows import Rows


def rows_of(tensors: dict[str, torch.Tensor], full: bool = True) -> Rows:
    packed = [pack_row(tensor_stats(tensor)) for tensor in tensors.values()]
    counts, reals = (np.stack(part) for part in zip(*packed, strict=True))
    n = len(tensors)
    return Rows(tuple(tensors), counts, reals, np.ones(n), (None,) * n, full)


class LocalGroup:
    """A group whose ranks are threads."""

    def __init__(self, rank: int, shared: dict) -> None:
        self.rank, self.size, self._shared = rank, len(shared["given"]), shared

    def _gather(self, value):
        self._shared["given"][self.rank] = value
        self._shared["barrier"].wait(10)
        gathered = list(self._shared["given"])
        self._shared["barrier"].wait(10)
        return gathered

    def maximum(self, values):
        return np.max(self._gather(values), axis=0)

    def total(self, values):
        return np.sum(self._gather(values), axis=0)

    def exchange(self, blob):
        return self._gather(blob)


def joined_by_all(shares: list[Share], agreements: list[Agreement] | None = None):
    agreements = agreements or [Agreement() for _ in shares]
    shared = {"given": [None] * len(shares), "barrier": threading.Barrier(len(shares))}
    results = [None] * len(shares)

    def run(rank):
        results[rank] = join(shares[rank], agreements[rank], LocalGroup(rank, shared))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


tensors = st.lists(
    st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-45, 65504.0, float("inf")]), max_size=12
).map(lambda values: torch.tensor(values, dtype=torch.float32))


@settings(deadline=None, max_examples=60)
@given(st.lists(tensors, min_size=2, max_size=4))
def test_rows_of_ranks_add_up_to_the_row_of_all_elements(parts):
    tables = [
        tensors_table(rows_of({"a:input": part}), rank, len(parts))
        for rank, part in enumerate(parts)
    ]
    joined = type(tables[0])(
        tables[0].keys,
        sum(table.sums for table in tables),
        np.maximum.reduce([table.maxima for table in tables]),
    )
    rows, (ranks,) = joined_rows(joined, len(parts), {}, full=True)
    (row,) = rows
    expected = tensor_stats(torch.cat(parts))
    for name in ("numel", "zeros", "nans", "posinfs", "neginfs", "binade_first", "binades"):
        assert getattr(row.stats, name) == getattr(expected, name)
    assert (row.stats.amax, row.stats.amin) == (expected.amax, expected.amin)
    assert row.stats.sumsq == pytest.approx(expected.sumsq, rel=1e-12)
    held = [rank for rank, part in enumerate(parts) if not part.isfinite().all()]
    assert (ranks.nonfinite_ranks, ranks.nonfinite_rank) == (len(held), held[0] if held else None)
    amaxes = [tensor_stats(part).amax for part in parts]
    assert ranks.amax_rank == amaxes.index(max(amaxes))


def update_of(before: torch.Tensor, intended: torch.Tensor, storage: str = "bf16") -> Update:
    (figures,) = swallowing(before[None], intended[None], storage, None).tolist()
    shares = update_shares(figures)
    sums = dict(zip(FIGURES, figures, strict=True))
    return Update(
        "w:update",
        storage,
        before.numel(),
        before.numel(),
        shares["nonzero"],
        shares["ratio"],
        *(shares[name] for name in ("swallowed", "stochastic_kept", "deferred")),
        *(shares[name] for name in ("edq", "edq_normalised")),
        lost=True,
        intended="exact",
        intended_sq=sums["delta_sq"],
        applied_sq=sums["applied_sq"],
        weight_sq=sums["weight_sq"],
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**16), st.floats(2.0**-12, 2.0**-4), st.integers(1, 60))
def test_updates_of_shards_are_put_together_as_the_whole(seed, size, cut):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(64, generator=generator)
    before[:20] = 0  # a shard may be of weights that are all zero
    update = torch.randn(64, generator=generator) * size
    whole = update_of(before, update)
    tables = [
        updates_table([update_of(before[part], update[part])])
        for part in (slice(None, cut), slice(cut, None))
    ]
    joined = type(tables[0])(
        tables[0].keys,
        sum(table.sums for table in tables),
        np.maximum.reduce([table.maxima for table in tables]),
    )
    (found,) = joined_updates(joined)
    assert (found.numel, found.sampled, found.nonzero) == (64, 64, whole.nonzero)
    for name in ("ratio", "swallowed", "stochastic_kept", "deferred", "edq", "edq_normalised"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-4, abs=1e-9), name


def test_what_all_ranks_hold_whole_counts_once_and_what_one_has_alone_is_there():
    def share(rank: int) -> Share:
        tensors = {"a:weight": torch.ones(6), "a:input": torch.ones(2)}
        if rank:
            tensors[f"b{rank}:weight"] = torch.ones(3)
        slots = [
            SlotInfo(slot, slot[:-7], "weight", "Linear", (1,), "float32", "fp32", 0, REPLICATED)
            for slot in tensors
            if slot.endswith("weight")
        ]
        slots.append(SlotInfo("a:input", "a", "input", "Linear", (2,), "float32", "fp32", 1))
        snapshot = Snapshot(0, StepScalars(loss=float(rank)), rows_of(tensors, full=False))
        return Share([snapshot], slots)

    results = joined_by_all([share(rank) for rank in range(3)])
    for (snapshot,), slots in results:
        numel = {row.slot: row.stats.numel for row in snapshot.rows}
        assert numel == {"a:weight": 6, "a:input": 6, "b1:weight": 3, "b2:weight": 3}
        assert {slot.slot for slot in slots} == numel.keys()
        assert snapshot.scalars.loss == 1.0


@pytest.mark.parametrize("full", [True, False])
def test_weights_of_one_name_that_differ_between_ranks_are_told_apart(full):
    def share(rank: int) -> Share:
        tensors = {
            "same:weight": torch.ones(3),
            "experts:weight": torch.tensor([1.0, 2.0 + rank]),
            f"stage{rank}:weight": torch.full((2,), float(rank)),
            "experts:input": torch.full((2,), float(rank)),
        }
        if full:  # of the same amax
            tensors["scattered:weight"] = torch.tensor([8.0, 1.0 + rank])
        slots = [
            SlotInfo(slot, slot, slot[-6:], "Linear", (1,), "float32", "fp32", 0, REPLICATED)
            for slot in tensors
            if slot.endswith("weight")
        ]
        slots.append(SlotInfo("experts:input", "experts", "input", "E", (2,), "float32", "fp32", 0))
        return Share([Snapshot(0, StepScalars(), rows_of(tensors, full))], slots)

    agreements = [Agreement() for _ in range(3)]
    joined_by_all([share(rank) for rank in range(3)], agreements)
    expected = ["experts:weight", "scattered:weight"] if full else ["experts:weight"]
    assert [agreement.apart for agreement in agreements] == [expected] * 3


@pytest.mark.parametrize(
    ("full", "values", "expected"),
    [
        (True, [3.0, 4.0], math.sqrt(9 + (9 + 16) / 4**2)),
        (True, [3.0, math.inf], math.inf),
        (True, [math.nan, math.inf], math.nan),
        (False, [3.0, 4.0], None),  # whose rows hold no sums
    ],
)
def test_the_gradient_norm_is_that_of_all_stages_of_a_pipeline(full, values, expected):
    def share(rank: int) -> Share:
        tensors = {f"stage{rank}.w:grad_reduced": torch.tensor(values if rank else [12.0])}
        tensors["shared.w:grad_reduced"] = torch.ones(2)  # is in the first stage's already
        slots = [
            SlotInfo(
                slot, slot[:-13], "grad_reduced", "SGD", (1,), "float32", "fp32", 0, REPLICATED
            )
            for slot in tensors
        ]
        rows = replace(rows_of(tensors, full), loss_scales=np.full(2, 4.0))
        scalars = StepScalars(grad_norm=None if rank else 3.0)
        return Share([Snapshot(0, StepScalars()), Snapshot(1, scalars, rows)], slots)

    for (before, snapshot), _ in joined_by_all([share(rank) for rank in range(2)]):
        assert before.scalars.grad_norm is None
        norm = snapshot.scalars.grad_norm
        assert norm is None if expected is None else norm == pytest.approx(expected, nan_ok=True)


def test_ranks_that_scale_or_skip_differently_are_told():
    def share(rank: int) -> Share:
        scalars = StepScalars(loss_scale_before=4.0, loss_scale_after=4.0 - rank, skipped=rank > 0)
        return Share([Snapshot(0, scalars)], [])

    for (snapshot,), _ in joined_by_all([share(rank) for rank in range(2)]):
        assert snapshot.differing == ("loss_scale_after", "skipped")
        assert snapshot.scalars.skipped
        assert snapshot.scalars.loss_scale_after == 4.0


def test_the_parameters_to_blame_are_those_of_all_shards():
    def share(rank: int) -> Share:
        names = (("a.weight",), None, ("b.weight", "a.weight"))[rank]
        scalars = StepScalars(skipped=True, found_inf=True, nonfinite_parameters=names)
        return Share([Snapshot(0, scalars), Snapshot(1, StepScalars())], [])

    for snapshots, _ in joined_by_all([share(rank) for rank in range(3)]):
        named = [snapshot.scalars.nonfinite_parameters for snapshot in snapshots]
        assert named == [("a.weight", "b.weight"), None]
