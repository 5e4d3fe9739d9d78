"""Rules about gradients, over tensors with a known answer."""

import math

import pytest
import torch
from diagnosis_builders import Step, found, layers, make_run, slot, spread

from numwatch.diagnose.rules.gradients import RULES
from numwatch.record import Recorder
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.step_entries import Shadow
from numwatch.tensor_rows import Cast

INFOS = layers(4)


def log_normal(mean, sigma, n=1 << 14, seed=0):
    """Magnitudes 2^z, z ~ N(mean, sigma), signs alternating."""
    z = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.exp2(mean + sigma * z) * torch.tensor([1.0, -1.0]).repeat(n // 2)


def gradient_run(directory, make, n=8, infos=INFOS, losses=None, scale=1.0, casts=None, **given):
    """The same tensors at each step; `make` takes a slot's description."""
    steps = [
        Step(
            {
                "loss": 2.0 if losses is None else losses[number],
                "loss_scale_before": scale,
                "loss_scale_after": scale,
            },
            {info.slot: make(info) for info in infos},
            casts or {},
        )
        for number in range(n)
    ]
    return make_run(directory, infos, steps, **given)


def normal_size(info):
    return spread(1.0, dtype=torch.float16)


def tiny(mean, sigma=3.0):
    """Gradients that FP16 has cut already, beside a forward of normal size."""

    def make(info):
        return log_normal(mean, sigma).to(torch.float16) if info.scaled else spread(1.0)

    return make


def cut(mean, sigma):
    """Share at or below 2^-25 of 2^z: Φ((-25 - mean) / sigma) (facts, T1)."""
    return 0.5 * math.erfc((25 + mean) / sigma / math.sqrt(2))


@pytest.mark.parametrize(("mean", "sigma"), [(-24.0, 2.0), (-22.0, 2.0), (-23.0, 3.0)])
def test_the_share_of_flushed_elements_is_estimated(tmp_path, mean, sigma):
    only = found(gradient_run(tmp_path, tiny(mean, sigma)), *RULES)["gradient-underflow"]
    assert only.severity == "warning"
    assert (only.step, only.slot) == (0, "net.3:grad_output")
    assert only.evidence[0].value == pytest.approx(cut(mean, sigma), rel=0.35)
    assert len(only.others) == 7


def test_a_flushed_tail_below_a_large_bulk_is_no_alarm(tmp_path):
    """As in the head of a language model: 20 % flushed, and gradients a thousand times larger."""

    def make(info):
        return torch.cat([log_normal(-26, 1.0), log_normal(-8, 1.0)]).to(torch.float16)

    assert found(gradient_run(tmp_path, make), *RULES) == {}


def test_zeros_of_relu_are_not_flushing(tmp_path):
    """Half the elements are zero at two scales alike, and what is left lies far above the cut."""

    def make(info):
        return (spread(2.0**-10, 4096) * torch.tensor([1.0, 0.0]).repeat(2048)).to(torch.float16)

    assert found(gradient_run(tmp_path, make), *RULES) == {}


def test_bf16_has_no_such_cut(tmp_path):
    infos = layers(4, "bfloat16", "bf16")

    def make(info):
        return log_normal(-30, 2.0).to(torch.bfloat16)

    assert found(gradient_run(tmp_path, make, infos=infos, precision="bf16-mixed"), *RULES) == {}


def test_one_step_is_no_alarm(tmp_path):
    steps = [
        Step(tensors={info.slot: (tiny(-24.0) if n == 3 else normal_size)(info) for info in INFOS})
        for n in range(8)
    ]
    assert found(make_run(tmp_path, INFOS, steps), *RULES) == {}


def test_a_shadow_step_knows_better_than_the_estimate(tmp_path):
    run = gradient_run(tmp_path, tiny(-24.0))
    with Recorder.open(tmp_path, precision="16-mixed", device="cpu", arguments={}) as recorder:
        recorder.describe(INFOS)
        shadow = Shadow("net.3:grad_output", 100, 20, 100, 40, None, None)
        recorder.write(Snapshot(8, StepScalars(loss=2.0), shadows=(shadow,)))
    from numwatch import open_run

    only = found(open_run(run.path), *RULES)["gradient-underflow"]
    assert only.evidence[0].value == pytest.approx(40 / 80)
    assert "shadow" in only.cause


def zero_before(layer, amax):
    """Gradients that end at a layer, the one after it having an amax."""

    def make(info):
        number = int(info.module.rpartition(".")[2])
        if not info.scaled:
            return spread(1.0)
        return torch.zeros(64) if number <= layer else spread(amax, dtype=torch.float16)

    return make


def test_a_layer_flushed_whole_is_named_first_in_the_order_of_backward(tmp_path):
    rules = found(gradient_run(tmp_path, zero_before(1, 2.0**-20)), *RULES)
    only = rules["layer-flushed"]
    assert (only.slot, only.step, only.severity) == ("net.1:grad_output", 0, "critical")
    assert only.others == ("net.1:grad_weight", "net.0:grad_output", "net.0:grad_weight")
    assert only.evidence[0].value == 2.0**-20
    assert "dead-layer" not in rules


def test_the_same_zeros_after_large_gradients_are_a_dead_layer(tmp_path):
    rules = found(gradient_run(tmp_path, zero_before(1, 1.0)), *RULES)
    only = rules["dead-layer"]
    assert (only.slot, only.severity) == ("net.1:grad_output", "warning")
    assert "layer-flushed" not in rules


def test_a_dead_layer_is_named_by_what_it_sees(tmp_path):
    def make(info):
        if info.slot == "net.1:input":
            return torch.zeros(64)
        return zero_before(1, 1.0)(info)

    assert found(gradient_run(tmp_path, make), *RULES)["dead-layer"].slot == "net.1:input"


def test_no_gradient_from_the_loss_on(tmp_path):
    """In FP16 it was flushed; in BF16, and at a loss of 0, there was none."""
    nothing = zero_before(3, 0.0)
    rules = found(gradient_run(tmp_path / "a", nothing), *RULES)
    assert rules["layer-flushed"].slot == "net.3:grad_output"
    assert found(gradient_run(tmp_path / "b", nothing, losses=[0.0] * 8), *RULES) == {}
    infos = layers(4, "bfloat16", "bf16")
    assert found(gradient_run(tmp_path / "c", nothing, infos=infos), *RULES) == {}


def test_zeros_of_the_first_steps_alone_are_no_alarm(tmp_path):
    """A head that starts at zero hands no gradient on until it has moved."""
    steps = [
        Step(tensors={i.slot: (zero_before(2, 1.0) if n < 3 else normal_size)(i) for i in INFOS})
        for n in range(20)
    ]
    assert found(make_run(tmp_path, INFOS, steps), *RULES) == {}


def test_a_cast_that_flushes_everything(tmp_path):
    infos = [slot(f"net.{i}", "grad_output", 3 - i, "bfloat16", "e4m3") for i in range(3)]
    casts = {"net.1:grad_output": Cast("e4m3", 1.0, 64, 0)}
    steps = [Step(tensors={i.slot: spread(1e-6) for i in infos}, casts=casts) for _ in range(6)]
    only = found(make_run(tmp_path, infos, steps), *RULES)["layer-flushed"]
    assert only.slot == "net.1:grad_output"
    assert "Float8Training" in only.cure


@pytest.mark.parametrize(("end", "told"), [(8.0, True), (2.3, False), (1.0, False)])
def test_the_loss_rises_while_gradients_are_flushed(tmp_path, end, told):
    noise = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 0.05
    losses = (torch.linspace(2.3, end, 60) + noise).tolist()
    rules = found(gradient_run(tmp_path, tiny(-23.0), n=60, losses=losses), *RULES)
    assert ("loss-rises-while-flushing" in rules) is told


def test_a_loss_that_rises_without_flushing_is_another_matter(tmp_path):
    losses = torch.linspace(2.0, 9.0, 60).tolist()
    assert found(gradient_run(tmp_path, normal_size, n=60, losses=losses), *RULES) == {}


def by_depth(factor):
    """Gradients that change by a factor from each layer to the one before it."""
    infos = layers(6, "float32", "fp32")

    def make(info):
        number = int(info.module.rpartition(".")[2])
        return spread(factor ** (5 - number) if info.scaled else 1.0)

    return infos, make


@pytest.mark.parametrize(
    ("factor", "rule", "slot_"),
    [
        (0.05, "vanishing-gradients", "net.1:grad_output"),
        (4.0, "exploding-gradients", "net.0:grad_output"),
        (0.3, None, None),
        (2.0, None, None),
    ],
)
def test_gradients_across_depth(tmp_path, factor, rule, slot_):
    infos, make = by_depth(factor)
    rules = found(gradient_run(tmp_path, make, infos=infos, precision="32-true"), *RULES)
    assert set(rules) == ({rule} if rule else set())
    if rule:
        only = rules[rule]
        figures = {figure.name: figure.value for figure in only.evidence}
        assert only.slot == slot_
        assert figures["factor a layer"] == pytest.approx(factor, rel=1e-5)


def test_few_layers_have_no_depth(tmp_path):
    infos, make = by_depth(1e-4)
    few = [info for info in infos if int(info.module[-1]) >= 3]
    assert found(gradient_run(tmp_path, make, infos=few, precision="32-true"), *RULES) == {}
