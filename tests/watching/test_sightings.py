"""A tensor that several slots see is passed over once, and each of them has its numbers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import numwatch
from numwatch.schedule import Schedule
from numwatch.stats import cpu
from numwatch.taps import collector
from numwatch.taps import sightings as sightings_module
from numwatch.taps.gate import Gate
from numwatch.taps.sightings import Sightings
from numwatch.watch import Watch


@pytest.fixture(autouse=True)
def _no_tensor_is_too_small(monkeypatch):
    monkeypatch.setattr(sightings_module, "SMALL", 0)


EVERY_STEP = Schedule(1, 0)


def pass_over_each(patch):
    patch.setattr(Sightings, "follow", lambda *_: False)
    patch.setattr(Sightings, "_joins", lambda *_: False)


class Shared(nn.Module):
    """One norm's output goes to three projections, one of them twice, and through a view."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.deep = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def forward(self, x):
        n = self.norm(x)
        return self.deep(self.q(n) * self.k(n) + self.v(n) + self.k(n.view(2, -1, 8)).view_as(n))


def seen_in(model, x, mode=EVERY_STEP, steps=1, micro_batches=1):
    watch = Watch(model, Gate(strict=True), mode)
    watch.attach()
    for step in range(steps):
        watch.begin(step)
        for i in range(micro_batches):
            model(x + i).square().sum().backward()
        watch.end()
    watch.detach()
    return [{r.slot: r.stats for r in s.rows} for s in watch.collect(everything=True) if s.rows]


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("mode", [Schedule(1, 0), Schedule(1000, 1)])
def test_rows_are_those_of_a_pass_each(monkeypatch, mode, micro_batches):
    model, x = Shared(), torch.randn(4, 8)
    steps = 1 if mode.every_n_steps == 1 else 3
    found = seen_in(model, x, mode, steps, micro_batches)
    pass_over_each(monkeypatch)
    expected = seen_in(model, x, mode, steps, micro_batches)
    assert found == expected
    assert found[0]["k:input"].numel == 64 * micro_batches


class Wired(nn.Module):
    """Linears whose inputs are drawn from all that was there before, some called again."""

    def __init__(self, wires):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))
        self.wires = wires

    def forward(self, x):
        there = [x]
        for layer, source in self.wires:
            there.append(self.layers[layer](there[source % len(there)]))
        return sum(there)


@given(
    wires=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7)), min_size=1, max_size=7),
    micro_batches=st.integers(1, 3),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_wiring_gives_the_rows_of_a_pass_each(wires, micro_batches):
    torch.manual_seed(0)
    model, x = Wired(wires), torch.randn(2, 4)
    found = seen_in(model, x, micro_batches=micro_batches)
    with pytest.MonkeyPatch.context() as patch:
        pass_over_each(patch)
        expected = seen_in(model, x, micro_batches=micro_batches)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for slot, stats in ours.items():
            # Sums are added in another order.
            assert replace(stats, sum=0, sumsq=0) == replace(theirs[slot], sum=0, sumsq=0), slot
            assert stats.sumsq == pytest.approx(theirs[slot].sumsq, rel=1e-12)


def test_a_shared_tensor_is_passed_over_once(monkeypatch):
    passes = []
    monkeypatch.setattr(
        collector,
        "accumulate",
        lambda x, counts, reals, row: (
            passes.append(row),
            numwatch.stats.accumulate(x, counts, reals, row),
        ),
    )
    model = Shared()
    watch = Watch(model, Gate(strict=True), Schedule(1, 0))
    names = [slot.slot for slot in watch.slots]
    watch.attach()
    watch.begin(0)
    model(torch.randn(4, 8))
    watch.end()
    watch.detach()
    assert sorted(names[row] for row in passes) == [
        "deep.0:input",
        "deep.0:output",  # which is deep.1's input
        "deep.1:output",
        *["k:output"] * 2,
        "norm:output",  # the input of q, k and v, k's second time as a view
        "q:output",
        "v:output",
    ]


@pytest.mark.parametrize("mode", [Schedule(1, 0), Schedule(1000, 1)])
def test_slots_that_are_known_are_passed_over_once_too(monkeypatch, mode):
    passes = []
    put = cpu.RowWriter.put
    monkeypatch.setattr(
        cpu.RowWriter, "put", lambda self, *given: (passes.append(given[-1]), put(self, *given))
    )
    model = Shared()
    watch = Watch(model, Gate(strict=True), mode)
    names = [slot.slot for slot in watch.slots]
    watch.attach()
    for step in range(2):  # in the first, slots are new
        passes.clear()
        watch.begin(step)
        model(torch.randn(4, 8))
        watch.end()
    watch.detach()
    assert sorted(names[row] for row in passes) == [
        *["deep.0:input", "deep.0:output", "deep.1:output"],
        *["k:output"] * 2,
        *["norm:output", "q:output", "v:output"],
    ]


def test_tensors_of_inference_mode_are_passed_over_each_time():
    sightings = Sightings(2)
    with torch.inference_mode():
        x = torch.ones(8)
    for slot in range(2):
        assert not sightings.follow_or_note(slot, x, x.data_ptr(), 8)
    y = torch.ones(8)
    assert not sightings.follow_or_note(0, y, y.data_ptr(), 8)
    assert not sightings.follow_or_note(1, y, y.data_ptr(), 8)  # the row has a pass already
    assert sightings.take() == []
    assert not sightings.follow_or_note(0, y, y.data_ptr(), 8)
    assert sightings.follow_or_note(1, y, y.data_ptr(), 8)
    assert sightings.take() == [(1, 0)]


class InPlace(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.first, self.second, self.write = nn.Linear(4, 4), nn.Linear(4, 4), write

    def forward(self, x):
        y = self.first(x)
        with torch.no_grad():
            self.write(y)
        return self.second(y)


@pytest.mark.parametrize("write", [lambda y: y.zero_(), lambda y: y[0].zero_()])
def test_what_was_written_to_in_between_is_passed_over_again(write):
    (rows,) = seen_in(InPlace(write), torch.randn(3, 4))
    assert rows["first:output"].zeros == 0
    assert rows["second:input"].zeros >= 4


def test_memory_that_was_freed_is_another_tensor():
    sightings = Sightings(2)
    x = torch.ones(8)
    assert not sightings.follow(0, x)
    sightings.note(0, x)
    assert sightings.follow(1, x.view(2, 4))
    address = x.data_ptr()
    del x
    y = torch.empty(0).set_(torch.zeros(8).untyped_storage())
    sightings._by_address[y.data_ptr(), y.dtype] = sightings._by_address[address, y.dtype]
    assert not sightings.follow(1, y)


def test_a_row_with_a_second_pass_is_followed_no_more():
    sightings = Sightings(3)
    x, y = torch.ones(8), torch.zeros(8)
    sightings.note(0, x)
    assert sightings.follow(1, x)
    assert list(sightings.note(0, y)) == [1]  # whose row must take that of 0 now
    assert not sightings.follow(2, x)
    assert not sightings.follow(2, y)
    assert sightings.take() == []


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (lambda x: x, lambda x: x.view(-1), True),
        (lambda x: x, lambda x: x.detach(), True),
        (lambda x: x, lambda x: x[:2], False),
        (lambda x: x, lambda x: x.mT, False),
        (lambda x: x.mT, lambda x: x.mT, True),
        (lambda x: x[:, ::2], lambda x: x[:, ::2], True),
        (lambda x: x[:2], lambda x: x[:, :2], False),
        (lambda x: x, lambda x: x.view(torch.int32).view(torch.float32), True),
        (lambda x: x, lambda x: x.view(torch.bfloat16), False),
    ],
)
def test_views_are_the_same_where_they_hold_the_same_elements(first, second, same):
    x = torch.randn(4, 4)
    sightings = Sightings(2)
    seen = first(x)
    sightings.note(0, seen)
    assert sightings.follow(1, second(x)) is same


def test_numbers_with_the_sign_bit_of_a_view_are_not_those_without_it():
    class Conjugate(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.then = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, z):
            return self.first(z.conj().imag) + self.then(z.imag)

    z = torch.randn(16, 8, dtype=torch.complex64)
    (rows,) = seen_in(Conjugate(), z)
    for path, sign in (("first", -1), ("then", 1)):
        assert rows[f"{path}:input"].sum == pytest.approx(sign * float(z.imag.sum()), rel=1e-5)
