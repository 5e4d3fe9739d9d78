"""Gains of norms that a block format makes one value of."""

import numpy as np
import pytest
import torch
from family_builders import course, evidence, found, slot, tensor_rows

from numwatch.diagnose.rules.blocks import block_gain_collapse, collapsed_share
from numwatch.formats import get_block_format, round_to_block_format
from numwatch.snapshot import Snapshot, StepScalars

MXFP8 = get_block_format("mxfp8")


def gains(low, high, step, n=256):
    generator = torch.Generator().manual_seed(step)
    return low + (high - low) * torch.rand(n, generator=generator)


def emulating(directory, low, high, rule="floor"):
    """A module that rounds the gains of a norm to MXFP8, at each step."""
    before = slot("ln.quantize", "input", 1, shape=(256,))
    after = slot("ln.quantize", "output", 2, shape=(256,))
    steps = []
    for step in range(4):
        x = gains(low, high, step)
        rounded = round_to_block_format(x, MXFP8, scale_rule=rule)
        rows = tensor_rows([(before, x, None), (after, rounded, None)])
        steps.append(Snapshot(step, StepScalars(), rows))
    return evidence(directory, steps, [before, after])


def test_gains_below_one_collapse_when_scales_are_rounded_down(tmp_path):
    (finding,) = found(block_gain_collapse, emulating(tmp_path, 0.90625, 1.0))
    assert (finding.severity, finding.step, finding.slot) == ("warning", 0, "ln.quantize:output")
    assert finding.evidence[0].value < 1e-3 < finding.evidence[1].value
    assert "rceil" in finding.cure


def test_gains_over_octaves_and_untrained_ones_do_not(tmp_path):
    assert found(block_gain_collapse, emulating(tmp_path / "a", 0.1, 3.0)) == []
    assert found(block_gain_collapse, emulating(tmp_path / "b", 1.0, 1.0)) == []
    wide = emulating(tmp_path / "c", 0.6, 1.0, "rceil")
    assert found(block_gain_collapse, wide) == []


def named(directory, precision, low=0.90625, cls="LayerNorm"):
    info = slot("ln", "weight", 1, shape=(256,), cls=cls)
    steps = [
        Snapshot(step, StepScalars(), tensor_rows([(info, gains(low, 1.0, step), None)]))
        for step in range(4)
    ]
    return evidence(directory, steps, [info], precision)


def test_a_run_in_a_block_format_is_told_what_it_would_do(tmp_path):
    (finding,) = found(block_gain_collapse, named(tmp_path / "a", "mxfp8"))
    assert (finding.severity, finding.slot) == ("info", "ln:weight")
    assert found(block_gain_collapse, named(tmp_path / "b", "bf16-mixed")) == []
    assert found(block_gain_collapse, named(tmp_path / "c", "mxfp8", cls="Linear")) == []
    assert found(block_gain_collapse, named(tmp_path / "d", "mxfp8", low=0.1)) == []


@pytest.mark.parametrize(
    ("mean", "deviation"), [(0.95, 0.02), (1.0, 0.02), (0.8, 0.02), (0.97, 0.05), (1.3, 0.1)]
)
def test_the_share_is_that_of_rounding_itself(mean, deviation):
    x = mean + deviation * torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    # In one block, so that the largest gain of all is the block's.
    amax = float(x.abs().max())
    scale = 2.0 ** (np.floor(np.log2(amax)) - 8)
    rounded = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    counts = torch.unique(rounded, return_counts=True)[1]
    share = collapsed_share(np.array([mean]), np.array([deviation]), np.array([amax]))
    # Of the values it can be, the one nearest to the mean.
    assert share[0] == pytest.approx(float(counts.max()) / len(x), abs=0.02)


def test_without_tensors_nothing_is_said(tmp_path):
    assert found(block_gain_collapse, evidence(tmp_path, course([1.0]))) == []
