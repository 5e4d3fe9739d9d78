"""Loss scalers replayed over real FP16 runs, and over records with known gradients."""

import numpy as np
import pytest
import torch
from torch import nn

import numwatch
from numwatch.recipes import GradScalerRecipe, StaticLossScale
from numwatch.replay import replay


def fp16_run(directory, scale, *, steps=40, every=1, amax_every=0, poison=()):
    """Trains a small model in FP16 under a scaler that grows every 4 steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
    generator = torch.Generator().manual_seed(1)
    with numwatch.watch(
        net,
        optimizer,
        scaler=scaler,
        dir=directory,
        summary=False,
        every_n_steps=every,
        amax_every_n_steps=amax_every,
        audit=False,
        origin=False,
        capsule_gb=0,
    ) as watch:
        for step in range(steps):
            x = torch.randn(64, 32, generator=generator)
            if step in poison:
                x[0, 0] = torch.nan
            with torch.autocast("cpu", torch.float16):
                loss = (net(x).float() - x[:, :1]).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss=loss)
            optimizer.zero_grad()
    return numwatch.open_run(directory)


def really(run):
    steps = run.steps()
    return steps["loss_scale_before"].to_numpy(), steps["found_inf"].to_numpy(zero_copy_only=False)


@pytest.mark.parametrize(("every", "amax_every"), [(1, 0), (10, 5)])
def test_a_runs_own_scaler_is_found_again_whatever_was_recorded(tmp_path, every, amax_every):
    """The steps table tells of every step whether its gradients fitted the scale it had."""
    run = fp16_run(tmp_path, 2.0**22, every=every, amax_every=amax_every)
    found = replay(run, GradScalerRecipe(init_scale=2.0**22, growth_interval=4))
    scales, skipped = really(run)
    assert skipped.sum() > 4
    assert found.loss.scale.tolist() == scales.tolist()
    assert found.loss.skipped.tolist() == skipped.tolist()
    assert found.certain


def test_a_loss_that_is_nan_is_skipped_at_any_scale(tmp_path):
    run = fp16_run(tmp_path, 2.0**10, steps=12, poison=(3, 7))
    found = replay(run, StaticLossScale(1.0))
    assert np.flatnonzero(found.loss.skipped).tolist() == [3, 7]


def test_lower_scales_than_the_runs_are_sure_to_fit_and_others_are_in_doubt(tmp_path):
    run = fp16_run(tmp_path, 2.0**8, steps=20, every=10)
    low = replay(run, StaticLossScale(2.0**6))
    assert low.skipped == low.doubtful == 0
    high = replay(run, StaticLossScale(2.0**30))
    assert high.skipped == 20  # the last ones seen stand
    assert high.doubtful == 18


def test_what_fp16_had_flushed_before_is_within_the_bounds(tmp_path):
    """A run at a scale that flushes, replayed at one that does not, and held to a run at that."""
    low, high = (fp16_run(tmp_path / str(s), s, steps=4) for s in (2.0**-8, 2.0**10))
    found = replay(low, StaticLossScale(2.0**10))
    real = replay(high, StaticLossScale(2.0**10))
    truth = {one.slot: one for one in real.slots}
    widest = 0.0
    for one in found.slots:
        # Of the first step alone: from there on the weights differ.
        zeros = (
            low.tensors(one.slot)["zeros"][0].as_py() - high.tensors(one.slot)["zeros"][0].as_py()
        )
        lost = zeros / (one.elements[0] + zeros) if zeros > 0 else 0.0
        _, least, most = one.flushed[0]
        widest = max(widest, most - least)
        assert least <= truth[one.slot].flushed[0, 2] + 1e-9
        assert lost <= most + 1e-9
    assert widest > 0.01


def test_gradients_wider_than_fp16_that_are_not_finite_are_so_at_any_scale(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4))
    with numwatch.watch(net, dir=tmp_path, summary=False, every_n_steps=1, audit=False) as watch:
        for step in range(3):
            factor = torch.inf if step == 1 else 1.0
            output = net(torch.randn(8, 4))
            output.register_hook(lambda gradient, factor=factor: gradient * factor)
            output.sum().backward()
            watch.step(loss=torch.ones(()))
            net.zero_grad()
    found = replay(tmp_path, StaticLossScale(2.0**-20))
    assert found.loss.skipped.tolist() == [False, True, False]
