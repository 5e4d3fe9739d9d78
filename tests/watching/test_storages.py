"""What numwatch has looked at can still be resized, as FSDP does with every gathered weight."""

import pytest
import torch
from torch import nn

import numwatch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storages_stay_resizable(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(64, 64)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(32, 64).to(dtype).requires_grad_()
    options = {"every_n_steps": 1, "block_every_n_steps": 1, "summary": False, "strict": True}
    with numwatch.watch(model, optimizer, dir=tmp_path, **options) as watch:
        output = model(x)
        output.float().square().mean().backward()
        optimizer.step()
        watch.step()
    numwatch.tensor_stats(x)
    assert numwatch.open_run(tmp_path).blocks().num_rows
    state = [value for kept in optimizer.state.values() for value in kept.values()]
    gradients = [parameter.grad for parameter in model.parameters()]
    for tensor in (x, x.grad, output, *model.parameters(), *gradients, *state):
        tensor.untyped_storage().resize_(0)
