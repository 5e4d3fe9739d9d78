"""A replay against trainings that really used the recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import numwatch
from numwatch.emulate import emulate
from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS, get_format
from numwatch.plan import ModulePlan, Operand, Plan
from numwatch.recipes.spec import parse_any_recipe, parse_recipe
from numwatch.replay import grid, replay, sweep
from numwatch.replay.history import FullRows
from numwatch.report.replay_json import replay_dict
from numwatch.report.replay_lines import replay_lines, sweep_lines
from numwatch.stats import tensor_stats
from numwatch.stats.cuts import count_at_most
from numwatch.stats.cuts_of_rows import shares_at_most

DELAYED = "delayed:history=4,margin=1"


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48))


def plan(recipe):
    def operand(fmt):
        return Operand(get_format(fmt), parse_recipe(recipe))

    operands = {
        "input": operand("e4m3"),
        "weight": operand("e4m3"),
        "grad_output": operand("e5m2"),
    }
    return Plan("fp8", modules=tuple(ModulePlan(name, operands) for name in ("0", "2")))


def train(directory, recipe=None, *, steps=30, lr=0.3, every=1, amax_every=1):
    net = model()
    if recipe is not None:
        emulate(net, plan(recipe))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    with numwatch.watch(
        net,
        optimizer,
        dir=directory,
        summary=False,
        strict=True,
        every_n_steps=every,
        amax_every_n_steps=amax_every,
        block_every_n_steps=every,
    ) as watch:
        for step in range(steps):
            # Spikes, so that stale scales saturate.
            x = torch.randn(64, 32, generator=generator) * (8.0 if step % 7 == 3 else 1.0)
            optimizer.zero_grad()
            loss = (net(x) - x[:, :1]).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    return numwatch.open_run(directory)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return train(tmp_path_factory.mktemp("emulated"), DELAYED)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain"))


def test_scales_are_those_of_a_real_stateful_run(emulated):
    """Every scale in force at every step, and saturation and flushing within their bounds."""
    found = replay(emulated, parse_recipe(DELAYED))
    assert {one.slot for one in found.slots} == {
        f"{module}:{role}" for module in "02" for role in ("input", "weight", "grad_output")
    }
    assert found.certain
    saturating = 0
    for one in found.slots:
        rows = emulated.tensors(one.slot).to_pylist()
        assert one.step.tolist() == [row["step"] for row in rows]
        assert one.scale.tolist() == [row["cast_scale"] for row in rows]
        nonzeros = np.array([row["numel"] - row["zeros"] for row in rows])
        for name, shares in (("cast_saturated", one.saturated), ("cast_flushed", one.flushed)):
            counts = np.array([row[name] for row in rows])
            low, high = shares[:, 1] * nonzeros, shares[:, 2] * nonzeros
            assert (np.floor(low + 1e-6) <= counts).all(), (one.slot, name)
            assert (counts <= np.ceil(high - 1e-6)).all(), (one.slot, name)
        saturating += one.steps_saturating
        assert one.saturates.tolist() == [row["cast_saturated"] > 0 for row in rows]
    assert saturating > 5


def test_a_spike_saturates_under_its_stale_scale(plain_run):
    found = replay(plain_run, parse_recipe("delayed:history=1024"))
    (first,) = (one for one in found.slots if one.slot == "0:input")
    assert first.saturates[3]
    later = first.saturates[4:]
    assert later.sum() < 4  # the spike stays in the history
    recent = replay(plain_run, parse_recipe("delayed:algorithm=most_recent"))
    (other,) = (one for one in recent.slots if one.slot == "0:input")
    assert {3, 10, 17, 24} <= set(np.flatnonzero(other.saturates).tolist())


def test_current_scaling_never_saturates_and_wastes_nothing(plain_run):
    for one in replay(plain_run, parse_recipe("current")).slots:
        assert not one.saturates.any()
        assert (one.saturated == 0).all()
        assert np.nanmax(one.wasted) < 1e-6


def test_power_of_two_scales_waste_less_than_a_bit(plain_run):
    for one in replay(plain_run, parse_recipe("current:power_of_two=true")).slots:
        assert (np.nan_to_num(one.wasted) < 1).all()
        # The cut falls between two binades; an element may tie with it.
        assert (one.flushed[:, 2] - one.flushed[:, 1] <= 0.01).all()


@pytest.mark.parametrize("recipe", ["mx", "mx:rule=rceil", "nvfp4", "rowwise", "block"])
def test_recipes_of_parts_are_answered_from_block_counts(plain_run, recipe):
    found = replay(plain_run, parse_recipe(recipe))
    assert found.slots
    for one in found.slots:
        assert np.isfinite(one.flushed[:, 0]).all()
        assert (one.flushed[:, 1] <= one.flushed[:, 2]).all()
        assert np.isnan(one.scale).all()


def test_gaps_are_told(tmp_path):
    run = train(tmp_path, every=10, amax_every=5)
    found = replay(run, parse_recipe(DELAYED))
    assert not found.certain
    assert (found.steps, found.recorded) == (30, 6)
    text = "\n".join(line.plain for line in replay_lines(found, 3))
    assert "6 of 30 steps were recorded" in text
    assert "the last one seen stands" in text
    assert replay(run, parse_recipe("current")).certain


def fp16_run(directory, scale, steps=25):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=5)
    generator = torch.Generator().manual_seed(1)
    with numwatch.watch(
        net, optimizer, scaler=scaler, dir=directory, summary=False, every_n_steps=1, audit=False
    ) as watch:
        for _ in range(steps):
            x = torch.randn(64, 32, generator=generator)
            with torch.autocast("cpu", torch.float16):
                loss = (net(x).float() - x[:, :1]).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss=loss)
            optimizer.zero_grad()
    return numwatch.open_run(directory)


def test_a_loss_scaler_skips_what_a_real_one_skipped(tmp_path):
    """The same model under two scales: the record of one foretells the other's scale and skips."""
    low = fp16_run(tmp_path / "low", 2.0**4)
    high = fp16_run(tmp_path / "high", 2.0**22)
    text = f"grad-scaler:init_scale={2.0**22},growth_interval=5"
    found = replay(low, parse_any_recipe(text))
    steps = high.steps().to_pylist()
    real = [row["loss_scale_before"] for row in steps]
    first = next(i for i, row in enumerate(steps) if not row["skipped"])
    # Until the first step is taken both runs have the same weights.
    assert 2 <= first < len(steps)
    assert found.loss_scale[: first + 1].tolist() == real[: first + 1]
    assert found.skipped == pytest.approx(sum(row["skipped"] for row in steps), abs=1)
    assert "would be skipped" in "\n".join(line.plain for line in replay_lines(found, 3))


def test_a_sweep_is_ranked(plain_run):
    texts = grid("delayed", ["history=1,16", "margin=0,2"])
    assert texts == [
        "delayed:history=1",
        "delayed:history=1,margin=2",
        "delayed:history=16",
        "delayed:history=16,margin=2",
    ]
    rows = sweep(texts, lambda text: replay(plain_run, parse_any_recipe(text)))
    shares = [row.steps_saturating for row in rows]
    assert shares == sorted(shares)
    assert rows[0].recipe == "delayed:history=16,margin=2"
    assert [line.plain.split()[0] for line in sweep_lines(rows)[1:5]] == [r.recipe for r in rows]


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("history", "--sweep takes key=value,value; got 'history'"),
        ("history=", "--sweep takes key=value,value"),
        ("histor=1", "did you mean 'history'"),
        ("history=x", "history is a whole number"),
    ],
)
def test_a_sweep_that_is_none(axis, message):
    with pytest.raises(NumwatchError, match=message):
        grid("delayed", [axis])


def test_unknown_slots_and_formats(plain_run):
    with pytest.raises(NumwatchError, match=r"no slot '0:inptu'.*did you mean '0:input'"):
        replay(plain_run, parse_recipe("current"), slots=["0:inptu"])
    with pytest.raises(NumwatchError, match="unknown format 'e4m4'"):
        replay(plain_run, parse_recipe("current"), formats="e4m4")


def test_json_is_strict(plain_run):
    for text in ("delayed", "nvfp4", "grad-scaler"):
        content = replay_dict(replay(plain_run, parse_any_recipe(text)))
        assert json.loads(json.dumps(content, allow_nan=False)) == content
        assert all(len(one["at_steps"]["step"]) == 30 for one in content["slots"])
    assert len(content["loss_scale"]["scale"]) == 30


def test_json_of_a_long_run_has_the_steps_of_the_worst_slots_alone(plain_run):
    content = replay_dict(replay(plain_run, parse_recipe("delayed")), steps_told=70)
    assert [one["at_steps"] is not None for one in content["slots"]] == [True] * 2 + [False] * 4
    assert all(one["flushed"] for one in content["slots"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 6), st.sampled_from(["e4m3", "e5m2", "e2m1"]))
def test_cuts_of_many_rows_are_those_of_each(seed, sigma, name):
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(n, generator=generator)
        * torch.exp2(sigma * torch.randn(n, generator=generator))
        for n in (1, 7, 200)
    ]
    tensors.insert(seed % 4, torch.zeros(5))
    stats = [tensor_stats(x) for x in tensors]
    fmt = FORMATS[name]
    scales = [fmt.max / (float(x.abs().max()) or 1.0) * 2.0 ** (seed % 5 - 2) for x in tensors]
    lengths = [len(one.binades) for one in stats]
    rows = FullRows(
        counts=np.concatenate([np.array(one.binades, np.int64) for one in stats]),
        ends=np.concatenate([[0], np.cumsum(lengths)]),
        first=np.array([one.binade_first for one in stats]),
        pow2s=np.array([one.pow2s for one in stats]),
        amin=np.array([one.amin for one in stats]),
        amax=np.array([one.amax for one in stats]),
        loss_scale=np.ones(4),
        zeros=np.zeros(4, np.int64),
    )
    assert rows.elements.tolist() == [one.nonzeros for one in stats]
    for cut in (fmt.flush_threshold, fmt.max, 1.0):
        shares = shares_at_most(rows, cut, np.array(scales))
        for one, scale, share in zip(stats, scales, shares, strict=True):
            count = count_at_most(one, cut, scale)
            expected = [x / max(one.nonzeros, 1) for x in (count.value, count.low, count.high)]
            assert share == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_run_without_operands_is_told(tmp_path):
    net = nn.Sequential(nn.Embedding(4, 4))
    with numwatch.watch(net, dir=tmp_path, summary=False, every_n_steps=1) as watch:
        net(torch.zeros(3, dtype=torch.int64)).sum().backward()
        watch.step()
    found = replay(tmp_path, parse_recipe("current"))
    assert found.slots == ()
    assert "no tensor that this recipe scales" in "\n".join(x.plain for x in replay_lines(found, 3))


def test_costs_on_the_page_are_those_of_the_result_file():
    root = Path(__file__).parents[2]
    found = json.loads((root / "benchmarks" / "results" / "replay-cpu.json").read_text())
    text = " ".join((root / "docs" / "replay.md").read_text().split())
    first, further = list(found["seconds"].values())[:2]
    assert (found["steps"], found["slots"]) == (10_000, 1_000)
    assert f"replayed in {first:.1f} s, and once read in {further:.1f} s a further recipe" in text
    assert f"within {found['peak_gib']:.2f} GiB" in text
    assert first < found["limit_seconds"]
    assert found["peak_gib"] < found["limit_gib"]
