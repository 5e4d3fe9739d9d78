"""Golden replays: what `numwatch replay` prints, to the letter."""

from pathlib import Path

import numpy as np
import pytest

from numwatch.replay import LossCourse, Reach, Replay, SlotReplay, Swept
from numwatch.report.replay_lines import replay_lines, sweep_lines
from numwatch.stats import Bounded

GOLDEN = Path(__file__).parent / "golden"
STEPS = 90
STEP = 10 * np.arange(STEPS)


def slot(name, fmt="e4m3", *, saturating=(), share=0.0, flushed=0.02, scale=None, reach=None):
    """A slot recorded at every tenth step, each fifth of these whole."""
    full = np.arange(STEPS) % 5 == 0
    saturates = np.isin(np.arange(STEPS), saturating)
    clipped = np.where(saturates[full][:, None], [share, share / 2, share * 2], 0.0)
    scale = 448.0 / (1 + np.arange(STEPS) / 30) if scale is None else scale
    return SlotReplay(
        slot=name,
        format=fmt,
        step=STEP,
        scale=scale,
        start=np.arange(STEPS) == 0 if reach else np.zeros(STEPS, np.bool_),
        saturates=saturates,
        full=full,
        saturated_shares=clipped,
        flushed_shares=np.tile([flushed, flushed / 2, flushed * 2], (full.sum(), 1)),
        counts=np.full(full.sum(), 1000),
        wasted=np.where(saturates, 0.0, 0.5 + np.arange(STEPS) / 60),
        reach=reach,
    )


def delayed(reach):
    slots = (
        slot("blocks.0.fc:input", saturating=range(20, 40), share=0.03, reach=reach),
        slot("blocks.0.fc:weight", saturating=[3], flushed=0.0, reach=reach),
        slot("head:grad_output", "e5m2", reach=reach),
    )
    return Replay("delayed:history=16", slots, 900, 90)


def scaler():
    step = np.arange(900)
    scale = np.where(step < 300, 2.0**16, np.where(step < 600, 2.0**13, 2.0**14))
    course = LossCourse(step, scale, step % 300 == 299, step % 10 != 0)
    own = slot("head:grad_output", "fp16", saturating=[29], scale=scale[::10])
    return Replay("grad-scaler", (own,), 900, 90, loss=course)


def parts(rows):
    nothing = np.full(STEPS, np.nan)
    own = slot("blocks.0.fc:input", "mxfp8-e4m3", scale=nothing)
    return Replay("mx:rule=rceil", (own,), 900, 90, block_rows=rows)


KINDS = {
    "gaps": (delayed(Reach(seen=100, held=1424, blind=4, merged=False)), 2),
    "certain": (delayed(Reach(seen=1424, held=1424, blind=0, merged=False)), 3),
    "merged": (delayed(Reach(seen=1424, held=1424, blind=0, merged=True)), 1),
    "scaler": (scaler(), 5),
    "parts": (parts(2), 5),
    "no-blocks": (parts(0), 5),
    "nothing": (Replay("current", (), 6, 0), 5),
}


def text_of(lines):
    return "".join(f"{line.plain.rstrip()}\n" for line in lines)


@pytest.mark.parametrize("name", KINDS)
def test_a_replay_reads_as_it_did(name):
    """After a wanted change, write what `text_of` gives to the golden file and read the diff."""
    text = text_of(replay_lines(*KINDS[name]))
    assert text == (GOLDEN / f"replay-{name}.txt").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 100


def test_a_loss_scale_that_stays_has_no_chart():
    course = LossCourse(STEP, np.full(STEPS, 1024.0), STEP < 0, STEP < 0)
    text = text_of(replay_lines(Replay("static-loss", (), 90, 90, loss=course), 3))
    assert "loss scale  1024 throughout\n" in text
    assert "skipped     0 steps would be skipped\n" in text


def swept(recipe, saturating, skipped=None, seen=1.0):
    return Swept(recipe, saturating, Bounded(0.01, 0.0, 0.02), None, 1.25, skipped, seen)


@pytest.mark.parametrize("name", ["sweep", "sweep-gaps", "sweep-scaler"])
def test_a_sweep_reads_as_it_did(name):
    rows = {
        "sweep": [swept("delayed:margin=1", 0.0), swept("delayed", 0.57)],
        "sweep-gaps": [swept("delayed:margin=1", 0.0, seen=0.1), swept("current", 0.0, seen=None)],
        "sweep-scaler": [swept("megatron", 0.1, 3, None), swept("grad-scaler", 0.1, 4, None)],
    }[name]
    text = text_of(sweep_lines(rows))
    assert text == (GOLDEN / f"replay-{name}.txt").read_text(encoding="utf-8")
