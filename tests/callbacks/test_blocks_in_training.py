"""Block counts under Lightning: the training stays the same, the record holds them."""

import pytest
import torch
from test_monitor import PRECISIONS, classifier, fit, watched

from numwatch.callbacks import NumericsMonitor
from numwatch.record import iter_blocks


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_is_bitwise_the_same_and_the_blocks_are_kept(precision, tmp_path):
    bare, monitored = classifier(), classifier()
    fit(bare, precision=precision, tmp=tmp_path)
    monitor = NumericsMonitor(2, 0, strict=True, summary=False, block_every_n_steps=3)
    run = watched(monitored, tmp_path, monitor=monitor, precision=precision)
    theirs, ours = bare.state_dict(), monitored.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert sorted(set(run.blocks()["step"].to_pylist())) == [0, 4]
    modules, roles = ("body.1", "head"), ("input", "weight", "grad_output")
    expected = {f"{module}:{role}" for module in modules for role in roles}
    assert set(run.blocks()["slot"].to_pylist()) == expected
    for step, row in iter_blocks(run.blocks()):
        (stats,) = run.tensors(slot=row.slot, first=step, last=step).to_pylist()
        assert row.histogram.nonzeros == sum(stats["binades"])
        assert row.loss_scale == stats["loss_scale"]
    arguments = run.attempts[0]["arguments"]
    assert arguments["block_every_n_steps"] == 3
