"""What measuring updates takes of memory, on a model of a thousand parameters."""

import pytest
import torch
from peak_memory import MIB, peak_of
from torch import nn

from numwatch.schedule import Schedule
from numwatch.stats import warm_up
from numwatch.taps.gate import Gate
from numwatch.taps.parameters import MAX_SAMPLES
from numwatch.watch import Watch


@pytest.mark.parametrize(
    ("dtype", "of_each_sample"), [(torch.float32, 12), (torch.bfloat16, 2 + 8 + 12)]
)
def test_samples_of_a_thousand_parameters_stay_within_their_bound(dtype, of_each_sample):
    model = nn.Sequential(*(nn.Linear(96, 96, bias=False) for _ in range(1000))).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    bare = peak_of(optimizer.step)
    watch = Watch(model, Gate(strict=True), Schedule(1, 0), include=["*:update"])
    watch.attach([optimizer])
    warm_up((torch.float32, dtype))  # compiling takes memory too, once

    def watched():
        watch.begin(0)
        optimizer.step()
        watch.end()

    extra = peak_of(watched) - bare
    samples = 1000 * (MAX_SAMPLES // 1000)
    rows = 3 * 1000 * 8 * 270
    (snapshot,) = watch.collect(everything=True)
    assert len(snapshot.updates) == 4000
    # What is held, and so printed, is bounded by the samples, whatever the parameters' sizes.
    assert rows < watch.bytes <= samples * of_each_sample + 2 * rows + MIB
    # And it is the truth, but for what the comparison and the FP32 twin take for a moment.
    assert extra < 2 * watch.bytes + 16 * MIB
