import math

import pytest
import torch
from torch import nn

from numwatch.demo.gpt import GPT, GPTConfig

CONFIG = GPTConfig(context=16, layers=2, heads=2, width=32)


@pytest.fixture
def model():
    return GPT(CONFIG, lambda parameters: torch.optim.SGD(parameters, lr=0.1))


def test_logits_have_a_row_for_each_position(model):
    assert model(torch.zeros(3, 16, dtype=torch.int64)).shape == (3, 16, CONFIG.vocabulary)


def test_it_sees_no_future(model):
    model.eval()
    codes = torch.randint(CONFIG.vocabulary, (1, 16))
    changed = codes.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % CONFIG.vocabulary
    before, after = model(codes), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(dim=-1).all()


def test_every_parameter_learns(model):
    codes = torch.randint(CONFIG.vocabulary, (4, 16))
    model.loss((codes, codes)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name


def test_an_untrained_head_of_zeros_gives_the_uniform_loss(model):
    nn.init.zeros_(model.head.weight)
    codes = torch.randint(CONFIG.vocabulary, (4, 16))
    assert model.loss((codes, codes)).item() == pytest.approx(math.log(CONFIG.vocabulary))


def test_the_default_sizes_all_fit_fp8():
    model = GPT(GPTConfig(), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    sizes = [s for m in model.modules() if isinstance(m, nn.Linear) for s in m.weight.shape]
    assert sizes
    assert all(size % 16 == 0 for size in sizes)
