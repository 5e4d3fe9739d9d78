"""Diseases that look alike, in real training runs: each gets its own name."""

import math
from itertools import pairwise

import pytest
import torch
from diagnosis_builders import (
    Net,
    Step,
    classes,
    cross_entropy,
    flat,
    hurting,
    make_run,
    slot,
    train,
)
from torch import nn

import numwatch
from numwatch.formats import round_to_format
from numwatch.tensor_rows import Cast


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch):
    monkeypatch.setattr("torch._dynamo.eval_frame.cached_backends", {})


def rules_of(findings):
    return {each.rule for each in flat(findings)}


def mlp(*widths, activation=nn.ReLU):
    pairs = list(pairwise((16, *widths, 10)))
    modules = [m for a, b in pairs for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(*modules[:-1])


def test_overflow_against_nan_in_the_data(tmp_path):
    """Under GradScaler both skip every step and halve the scale each time."""

    def summed(outputs, labels):
        return 1e6 * nn.functional.cross_entropy(outputs.float(), labels, reduction="sum")

    x, y = classes()
    scaler = {"init_scale": 2.0**16}
    overflow = numwatch.diagnose(
        train(tmp_path / "a", Net(mlp(32), summed), (x, y), steps=14, scaler=scaler)
    )
    x[:, 3] = math.nan
    nan = numwatch.diagnose(
        train(tmp_path / "b", Net(mlp(32), cross_entropy), (x, y), steps=14, scaler=scaler)
    )
    assert hurting(overflow) == ["loss-scale-collapse-overflow"]
    assert "loss-scale-collapse-nan" not in rules_of(overflow)
    assert hurting(nan) == ["nan-in-data"]
    assert "loss-scale-collapse-nan" in rules_of(nan)
    assert "loss-scale-collapse-overflow" not in rules_of(nan)


def test_an_exponential_that_overflows_against_a_state_that_never_decays(tmp_path):
    """BF16 weights under Adam's defaults have the one, and the loss the other, first."""

    def exponential(outputs, labels):
        return outputs.exp().mean()

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=1e-3)

    x, y = classes()
    x[6 * 32 :] *= 1e5
    run = train(
        tmp_path,
        Net(mlp(32), exponential, adam),
        (x.bfloat16(), y),
        steps=14,
        precision="bf16-true",
    )
    assert hurting(numwatch.diagnose(run)) == ["nan-in-loss", "state-never-decays"]


@pytest.mark.parametrize("origin", [True, False])
def test_the_same_without_a_search_for_the_origin(tmp_path, origin):
    x, y = classes()
    x[::9, 3] = math.nan
    run = train(
        tmp_path,
        Net(mlp(32), cross_entropy),
        (x, y),
        steps=14,
        scaler={"init_scale": 2.0**16},
        origin=origin,
        amax_every_n_steps=1,
    )
    (root,) = [each for each in numwatch.diagnose(run) if each.severity != "info"]
    assert (root.rule, root.step) == ("nan-in-data", 0)
    assert root.slot == ("batch[0]" if origin else "net.0:input")


def test_zeros_of_relu_against_flushing(tmp_path):
    """Half of the gradient is zero either way; at a loss scale of 2^-14 FP16 makes the rest so."""
    torch.manual_seed(0)
    state = mlp(64, 64).state_dict()
    found = {}
    for exponent in (12, -14):
        net = mlp(64, 64)
        net.load_state_dict(state)
        scaler = {"init_scale": 2.0**exponent, "growth_interval": 10**9}
        run = train(
            tmp_path / str(exponent), Net(net, cross_entropy), classes(), steps=16, scaler=scaler
        )
        found[exponent] = rules_of(numwatch.diagnose(run))
        zeros = run.tensors("net.2:grad_output")["zeros"].drop_null().to_pylist()
        assert min(zeros) > 0.3 * 32 * 64
    flushing = {"gradient-underflow", "layer-flushed", "loss-scale-too-low"}
    assert not found[12] & {*flushing, "dead-layer"}
    assert found[-14] & flushing
    assert "dead-layer" not in found[-14]


def test_a_dead_layer_against_a_flushed_one(tmp_path):
    dead, flushed = mlp(64, 64), mlp(64, 64)
    with torch.no_grad():
        dead[2].bias -= 100.0
    scaler = {"init_scale": 2.0**10, "growth_interval": 10**9}
    a = train(tmp_path / "a", Net(dead, cross_entropy), classes(), steps=16, scaler=scaler)
    scaler["init_scale"] = 2.0**-22
    b = train(tmp_path / "b", Net(flushed, cross_entropy), classes(), steps=16, scaler=scaler)
    assert hurting(numwatch.diagnose(a)) == ["dead-layer"]
    found = numwatch.diagnose(b)
    assert hurting(found) == ["layer-flushed"]
    assert "dead-layer" not in rules_of(found)


class Quantised(torch.autograd.Function):
    """The identity, whose gradient is rounded to a format, saturating, and handed out."""

    @staticmethod
    def forward(ctx, x, fmt, scaled, seen):
        ctx.how = fmt, scaled, seen
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        fmt, scaled, seen = ctx.how
        largest = numwatch.get_format(fmt).max
        scale = largest / gradient.abs().amax().clamp(min=1e-30) if scaled else torch.tensor(1.0)
        rounded = round_to_format((gradient * scale).clamp(-largest, largest), fmt)
        seen.append((gradient.clone(), float(scale), int(((rounded == 0) & (gradient != 0)).sum())))
        return rounded / scale, None, None, None


def grid_run(directory, fmt, factor, *, scaled, seed, steps=400):
    """T4 (facts, section 4): trains it and records its gradients and losses as they were."""
    torch.manual_seed(seed)
    sizes = [32, 128, 128, 128, 128, 10]
    net = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    x = torch.randn(2048, 32)
    y = (x @ torch.randn(32, 10)).argmax(1)
    parameters = [p for layer in net for p in layer.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    infos = [
        slot(f"net.{i}", "grad_output", len(net) - i, "float32", fmt or "fp32")
        for i in range(len(net))
    ]
    recorded = []
    for number in range(steps):
        batch = slice(512 * (number % 4), 512 * (number % 4) + 512)
        seen = [[] for _ in net]
        h = x[batch]
        for i, layer in enumerate(net):
            h = layer(torch.relu(h) if i else h)
            if fmt:
                h = Quantised.apply(h, fmt, scaled, seen[i])
        loss = nn.functional.cross_entropy(h, y[batch])
        optimizer.zero_grad()
        (loss * factor).backward()
        for p in parameters:
            p.grad /= factor
        optimizer.step()
        step = Step({"loss": float(loss.detach())})
        if number % 20 == 0 and fmt:
            for info, ((gradient, scale, flushed),) in zip(infos, seen, strict=True):
                step.tensors[info.slot] = gradient
                step.casts[info.slot] = Cast(fmt, scale, flushed, 0)
        recorded.append(step)
    return make_run(directory, infos, recorded, precision="32-true"), recorded[-1].scalars["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("fmt", "exponent", "scaled", "outcome"),
    [
        (None, 0, False, "well"),
        ("e4m3", 0, False, "rises"),
        ("e4m3", -5, False, "stuck"),
        ("e5m2", -5, False, "rises"),
        ("e4m3", -5, True, "well"),
        ("e5m2", -5, True, "well"),
    ],
)
def test_fp8_gradients_flushed_in_part_or_whole(tmp_path, fmt, exponent, scaled, outcome, seed):
    """Flushed in part the loss rises, flushed whole it stays at ln 10."""
    run, last = grid_run(tmp_path, fmt, 2.0**exponent, scaled=scaled, seed=seed)
    found = {each.rule: each for each in flat(numwatch.diagnose(run))}
    flushed = found.get("layer-flushed")
    if outcome == "rises":
        assert last > math.log(10)
        assert "loss-rises-while-flushing" in found
        # Layers further down may get nothing; the last one, which learns, is flushed in part.
        assert flushed is None or flushed.slot != "net.4:grad_output"
    elif outcome == "stuck":
        assert last == pytest.approx(math.log(10), abs=0.02)
        assert flushed.slot == "net.4:grad_output"
        assert "loss-rises-while-flushing" not in found
    else:
        assert last < 1.6
        assert not {"loss-rises-while-flushing", "layer-flushed"} & set(found)
