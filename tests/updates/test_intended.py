import copy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from numwatch.taps.intended import Before, copied_state, intended_updates, is_element_wise

ELEMENT_WISE = [
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Rprop, {}),
]


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum; the published update in few lines."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.add_((m * first + p.grad * (1 - first)).sign(), alpha=-group["lr"])
                m.mul_(second).add_(p.grad, alpha=1 - second)


Lion.__module__ = "lion_pytorch.lion_pytorch"


def flat(tensor):
    return tensor.detach().reshape(-1)


def every_third(tensor):
    return flat(tensor)[::3]


@pytest.mark.parametrize(("cls", "arguments"), [*ELEMENT_WISE, (Lion, {})])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_what_the_same_optimizer_does_in_fp32_to_the_whole_parameter(cls, arguments, dtype):
    kept = {"eps": 1e-4} if "Ada" in cls.__name__ or "Adam" in cls.__name__ else {}
    p = nn.Parameter(torch.randn(8, 5).to(dtype))
    q = nn.Parameter(p.detach().float())
    optimizer = cls([p], lr=1e-2, **arguments, **kept)
    whole = cls([q], lr=1e-2, **arguments, **kept)
    assert is_element_wise(optimizer)
    for _ in range(4):
        gradient = torch.randn(8, 5).to(dtype)
        # The FP32 twin starts each step where the low-precision run is.
        q.data.copy_(p.detach())
        whole.state[q] = {
            key: value.detach().float().clone() if torch.is_tensor(value) else value
            for key, value in optimizer.state.get(p, {}).items()
        }
        state = copied_state(optimizer.state.get(p, {}), p, every_third)
        before = Before(every_third(p).clone(), state)
        p.grad, q.grad = gradient.clone(), gradient.float()
        optimizer.step()
        was = q.detach().clone()
        whole.step()
        (found,) = intended_updates(
            optimizer, [before], [every_third(gradient)], optimizer.param_groups
        )
        assert torch.equal(found, every_third(q.detach() - was))


def test_each_group_keeps_its_own_hyperparameters_as_a_scheduler_left_them():
    p, q = (nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [p], "lr": 1.0}, {"params": [q], "lr": 0.5}])
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.25)
    befores = [Before(flat(one).clone(), {}) for one in (p, q)]
    gradients = [torch.full((4,), 2.0) for _ in range(2)]
    found = intended_updates(optimizer, befores, gradients, optimizer.param_groups)
    assert [update[0].item() for update in found] == [-0.5, -0.25]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_the_user_s_parameters_state_hooks_and_random_numbers_are_left_alone(cls):
    p = nn.Parameter(torch.randn(6, dtype=torch.bfloat16))
    optimizer = cls([p])
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    p.grad = torch.randn_like(p)
    optimizer.step()
    calls.clear()
    state = copied_state(optimizer.state[p], p, flat)
    kept = copy.deepcopy((p.detach(), dict(optimizer.state[p]), torch.get_rng_state()))
    groups = copy.deepcopy({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
    intended_updates(
        optimizer, [Before(flat(p).clone(), state)], [flat(p.grad)], optimizer.param_groups
    )
    assert torch.equal(p.detach(), kept[0])
    for key, value in kept[1].items():
        assert torch.equal(torch.as_tensor(optimizer.state[p][key]), torch.as_tensor(value))
    assert torch.equal(torch.get_rng_state(), kept[2])
    assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == groups
    assert not calls
    assert len(optimizer.param_groups[0]["params"]) == 1


class Noisy(torch.optim.SGD):
    """Draws random numbers, as stochastic rounding does."""

    def step(self, closure=None):
        torch.rand(3)
        return super().step(closure)


def test_code_of_the_user_s_own_is_not_run():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = Noisy([p], lr=1.0)
    assert not is_element_wise(optimizer)
    before = torch.get_rng_state()
    groups = optimizer.param_groups
    assert intended_updates(optimizer, [Before(flat(p), {})], [torch.ones(2)], groups) is None
    assert torch.equal(torch.get_rng_state(), before)


class DrawsFirst(torch.optim.AdamW):
    """Draws a seed when it is made, and wants what nobody but its user knows; torch's step."""

    def __init__(self, params, secret, **arguments):
        torch.rand(3)
        super().__init__(params, **arguments)


def test_of_a_class_derived_from_torch_s_the_base_is_made():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = DrawsFirst([p], secret=3, lr=0.5)
    before = torch.get_rng_state()
    groups = optimizer.param_groups
    (found,) = intended_updates(optimizer, [Before(flat(p), {})], [torch.ones(2)], groups)
    assert found.tolist() == pytest.approx([-0.505, -0.505])
    assert torch.equal(torch.get_rng_state(), before)
    assert is_element_wise(optimizer)


def test_the_user_s_global_hooks_are_not_called_for_the_twin():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([p], lr=1.0)
    calls = []
    handle = register_optimizer_step_post_hook(lambda *_: calls.append(1))
    try:
        groups = optimizer.param_groups
        (found,) = intended_updates(optimizer, [Before(flat(p), {})], [torch.ones(2)], groups)
    finally:
        handle.remove()
    assert found.tolist() == [-1.0, -1.0]
    assert not calls


def test_an_optimizer_that_can_not_be_run_apart_gives_none():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torch.optim.LBFGS([p])
    before, groups = [Before(flat(p), {})], optimizer.param_groups
    assert intended_updates(optimizer, before, [torch.ones(2)], groups) is None


class Wrapper(torch.optim.Optimizer):
    """Steps an optimizer that it was given, and keeps it among its defaults."""

    def __init__(self, params, inner):
        super().__init__(params, {"inner": inner})

    def step(self, closure=None):
        return self.defaults["inner"].step(closure)


def test_an_inner_optimizer_does_not_step_the_user_s_parameters():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = Wrapper([p], torch.optim.SGD([p], lr=1.0))
    p.grad = torch.ones_like(p)
    before = [Before(flat(p).clone(), {})]
    assert intended_updates(optimizer, before, [torch.ones(2)], optimizer.param_groups) is None
    assert torch.equal(p, torch.ones(2, dtype=torch.bfloat16))


def test_a_learning_rate_that_is_a_tensor_is_the_twin_s_own():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([p], lr=rate)
    (found,) = intended_updates(
        optimizer, [Before(flat(p).clone(), {})], [torch.ones(2)], optimizer.param_groups
    )
    assert found.tolist() == [-0.5, -0.5]
    assert optimizer.param_groups[0]["lr"] is rate


def test_state_of_another_shape_is_left_out():
    p = nn.Parameter(torch.ones(4, 4))
    assert copied_state({"step": torch.tensor(3.0), "row_var": torch.ones(4, 1)}, p, flat) == {}
    assert copied_state({"m": p.detach(), "note": ["x"]}, p, flat).keys() == {"m"}
    kept = copied_state({"step": torch.tensor(3.0), "on": True, "m": p.detach().half()}, p, flat)
    assert kept["step"] == 3.0
    assert kept["on"] is True
    assert kept["m"].dtype == torch.float32
