"""Set-ups in which hooks could change the run, or rows take in what is not theirs."""

import gc
import weakref
from functools import partial

import pytest
import torch
from test_watch import Net, watch_of
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import numwatch
from numwatch.schedule import Schedule


def train(model, inputs, *, watched, steps=3):
    """Trains with SGD and returns the final state; every step is recorded where watched."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_of(model, [optimizer]) if watched else None
    for step in range(steps):
        if watch:
            watch.begin(step)
        model(*inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if watch:
            watch.end()
    if watch:
        watch.detach()
    return model.state_dict()


def spectral():
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16)), nn.Linear(16, 8)
    )


def thin_channels_last():
    return nn.Sequential(
        nn.Conv2d(3, 1, 3).to(memory_format=torch.channels_last), nn.Conv2d(1, 8, 3)
    )


class Selective(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    def forward(self, x):
        def policy(_context, op, *_args, **_kwargs):
            again = op is torch.ops.aten.gelu.default
            return CheckpointPolicy.MUST_RECOMPUTE if again else CheckpointPolicy.PREFER_SAVE

        contexts = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(self.body, x, use_reentrant=False, context_fn=contexts)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(spectral, (4, 8)), (thin_channels_last, (2, 3, 16, 16)), (Selective, (2, 4, 8))],
)
def test_training_is_bitwise_the_same(make, shape):
    x = torch.randn(shape)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    states = []
    for watched in (False, True):
        torch.manual_seed(0)
        states.append(train(make(), (x.requires_grad_(),), watched=watched))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_alias_keeps_the_strides_of_the_input():
    seen = []
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    watch = watch_of(model)
    model[0].register_forward_hook(lambda _, args, out: seen.append(args[0].stride()))
    watch.begin(0)
    x = torch.randn(2, 1, 4, 4, requires_grad=True).to(memory_format=torch.channels_last)
    model(x)
    assert seen == [x.stride()]


class LearnedQuery(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 3, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        mask = torch.zeros(3, x.shape[1]).fill_(-torch.inf).triu(1)
        return self.attention(self.query, x, x, attn_mask=mask)[0]


def test_hooks_on_a_parameter_end_with_the_step_and_masks_are_no_input():
    model = LearnedQuery()
    watch = watch_of(model)
    numels = []
    for step in range(3):
        watch.begin(step)
        model(torch.randn(1, 5, 8, requires_grad=True)).sum().backward()
        watch.end()
        rows = {row.slot: row.stats for row in watch.collect()[0].rows}
        numels.append(rows["attention:grad_input"].numel)
        assert rows["attention:input"].neginfs == 0
        assert rows["attention:output"].numel == 3 * 8
        assert not model.query._backward_hooks
    assert len(set(numels)) == 1


def test_validation_inside_a_step_is_not_the_steps():
    model = Net()
    watch = watch_of(model)
    watch.begin(0)
    model(torch.arange(20)).sum().backward()
    model.eval()
    with torch.no_grad():
        model(torch.arange(20).repeat(50))
    model.train()
    watch.end()
    rows = {row.slot: row.stats for row in watch.collect()[0].rows}
    assert rows["head:input"].numel == 20 * 16


def test_pause_takes_the_hooks_off_and_resume_goes_on_with_the_step(count_hooks):
    model = Net()
    watch = watch_of(model)
    watch.begin(0)
    model(torch.arange(20)).sum().backward()
    watch.pause()
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0
    model(torch.arange(20))
    watch.resume()
    model(torch.arange(20)).sum().backward()
    watch.end()
    rows = {row.slot: row.stats for row in watch.collect()[0].rows}
    assert rows["head:input"].numel == 2 * 20 * 16
    watch.detach()
    assert count_hooks(model) == 0


def test_cadence_holds_where_step_numbers_leave_some_out():
    schedule = Schedule(10, 5)
    steps = [0, *range(1, 60, 2)]
    modes = [
        schedule.mode(step, previous)
        for step, previous in zip(steps, [None, *steps[:-1]], strict=True)
    ]
    assert [mode.name for mode in modes].count("FULL") == 6
    assert [mode.name for mode in modes].count("AMAX") == 6


def test_fp64_gradients_have_a_norm():
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = watch_of(model, [optimizer])
    watch.begin(0)
    model(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    watch.end()
    assert watch.collect()[0].scalars.grad_norm == pytest.approx(2.0)


def test_optimizer_without_a_learning_rate_is_taken():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    watch = watch_of(model, [optimizer])
    watch.begin(0)
    watch.end()
    assert watch.collect(everything=True)[0].scalars.lr is None


def test_weights_unfrozen_later_get_their_gradients_seen():
    model = Net()
    model.q.requires_grad_(False)
    watch = watch_of(model)
    found = []
    for step in range(2):
        watch.begin(step)
        model(torch.arange(20)).sum().backward()
        watch.end()
        found.append("q:grad_weight" in watch.collect()[0].rows.slots)
        model.q.requires_grad_(True)
    assert found == [False, True]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_and_transformed_tensors_are_passed_by():
    model = nn.Sequential(nn.Linear(4, 4))
    watch = watch_of(model)
    watch.begin(0)
    torch.vmap(model)(torch.randn(3, 4))
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    model(nested)
    watch.end()
    assert set(watch.collect()[0].rows.slots) == {"0:weight"}


@pytest.mark.parametrize("share", [0.25, torch.tensor(0.25)])
def test_shares_of_the_loss_add_up(share):
    watch = watch_of(Net())
    watch.begin(0)
    watch.add_loss(share)
    watch.add_loss(share)
    watch.end()
    assert watch.collect(everything=True)[0].scalars.loss == 0.5


def test_a_plain_watch_that_is_kept_keeps_no_model(tmp_path):
    model = Net()
    with numwatch.watch(model, dir=tmp_path, summary=False) as watch:
        model(torch.arange(20)).sum().backward()
        watch.step()
    whole = weakref.ref(model)
    del model
    gc.collect()
    assert whole() is None
    with pytest.raises(numwatch.NumwatchError, match="entered once"):
        watch.__enter__()


def test_plain_watch_hooks_nothing_before_it_is_entered(tmp_path, count_hooks):
    model = Net()
    watch = numwatch.watch(model, dir=tmp_path, summary=False)
    assert count_hooks(model) == 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(numwatch.NumwatchError, match="inside its `with` block"):
        watch.step()


def test_hooks_go_even_where_the_warning_is_an_error(tmp_path, count_hooks, monkeypatch):
    def fail(*_):
        raise MemoryError("a test's")

    monkeypatch.setattr("numwatch.taps.collector.Collector.see_weights", fail)
    model = Net()
    with (
        pytest.raises(RuntimeWarning, match="numwatch stopped watching"),
        numwatch.watch(model, dir=tmp_path, summary=False),
    ):
        pass
    assert count_hooks(model) == 0
