"""Facts, section 4, T4 and T5: the recommended plan trains where the naive choice fails."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from thorough import every
from torch import nn

import numwatch
from numwatch.emulate import emulate
from numwatch.formats import get_format
from numwatch.plan import ModulePlan, Operand, Plan
from numwatch.recipes.spec import parse_recipe
from numwatch.recommend import recommend
from numwatch.recommend.candidates import GEMM_TARGETS
from numwatch.recommend.choose import choose_module
from numwatch.recommend.history import History, Rows
from numwatch.recommend.predict import predicted_errors
from numwatch.snapshot import SlotInfo
from numwatch.stats import tensor_stats

LINEARS = ("0", "2", "4", "6", "8")


def mlp():
    layers = [nn.Linear(32, 128), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def train(seed, factor, plan=None, directory=None):
    """2048 samples of argmax(XT), batch 512, SGD 0.1, 400 steps; returns the loss at the end."""
    generator = torch.Generator().manual_seed(seed)
    x, teacher = (torch.randn(*shape, generator=generator) for shape in ((2048, 32), (32, 10)))
    y = (x @ teacher).argmax(1)
    torch.manual_seed(seed)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if plan is not None:
        emulate(model, plan)
    watch = None
    if directory is not None:
        watch = numwatch.watch(model, optimizer, dir=directory, summary=False, every_n_steps=20)
        watch.__enter__()
    for _ in range(400):
        batch = torch.randint(0, 2048, (512,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[batch]), y[batch])
        (loss * factor).backward()
        for parameter in model.parameters():
            parameter.grad /= factor
        optimizer.step()
        if watch is not None:
            watch.step(loss=loss)
    if watch is not None:
        watch.__exit__(None, None, None)
    with torch.no_grad():
        return F.cross_entropy(model(x), y).item()


def naive(fmt):
    """Activation gradients as they come, without a scale."""
    operand = Operand(get_format(fmt), parse_recipe("static"))
    return Plan("fp8", modules=tuple(ModulePlan(n, {"grad_output": operand}) for n in LINEARS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exponent", "seed"),
    every(4, [(exponent, seed) for exponent in (0, -3, -5) for seed in (0, 1, 2)]),  # a diagonal
)
def test_t4_the_plan_reaches_fp32_where_the_naive_choice_fails(exponent, seed, tmp_path):
    factor = 2.0**exponent
    fp32 = train(seed, factor, directory=tmp_path)
    plan = recommend(tmp_path, "fp8")
    assert {module for module, _, _ in plan.operands()} == {"2", "4", "6"}
    assert train(seed, factor, plan) < 1.05 * fp32
    lost = train(seed, factor, naive("e4m3"))
    # Partly flushed the loss rises; wholly flushed it stays at ln 10.
    assert lost > 2 * fp32
    if exponent < 0:
        assert lost == pytest.approx(2.3026, abs=0.08)


def lognormal(sigma, n=200_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = sigma * torch.randn(n // 64, 64, generator=generator)
    signs = torch.randint(0, 2, z.shape, generator=generator) * 2 - 1
    return torch.exp2(z - 20) * signs


def history(role, x):
    info = SlotInfo(f"fc:{role}", "fc", role, "Linear", tuple(x.shape), "float32", "fp32", 0)
    blocks = {
        (one.size, one.direction): one for one in tensor_stats(x, blocks=(16, 32)).blocks.histograms
    }
    rows = Rows.of(tensor_stats(x), blocks=blocks)
    amax = x.abs().max().item()
    return History(info.slot, info, rows, torch.arange(1).numpy(), torch.tensor([amax]).numpy(), 0)


@pytest.mark.parametrize("sigma", [4, 6])
def test_t5_gradients_get_e5m2_though_sqnr_speaks_for_e4m3(sigma):
    gradient = lognormal(sigma)
    stats, current = tensor_stats(gradient), parse_recipe("current")
    sqnr = {
        name: predicted_errors(stats, get_format(name), current).sqnr for name in ("e4m3", "e5m2")
    }
    assert sqnr["e4m3"] > sqnr["e5m2"] + 3  # the trap
    histories = {
        "input": history("input", torch.randn(3125, 64)),
        "weight": history("weight", torch.randn(64, 64) * 0.02),
        "grad_output": history("grad_output", gradient),
    }
    chosen = choose_module("fc", histories, GEMM_TARGETS["fp8"])
    assert not chosen.kept, chosen.reason
    operand = chosen.operands["grad_output"]
    assert operand.format.name == "e5m2"
    assert operand.recipe.name == ("current" if sigma == 4 else "rowwise")
    assert "e4m3" in operand.reason


def test_narrow_gradients_get_the_finer_format():
    histories = {
        "input": history("input", torch.randn(64, 64)),
        "weight": history("weight", torch.randn(64, 64)),
        "grad_output": history("grad_output", lognormal(1)),
    }
    chosen = choose_module("fc", histories, GEMM_TARGETS["fp8"])
    assert chosen.operands["grad_output"].format.name == "e4m3"
    assert chosen.operands["grad_output"].recipe.name == "current"
