"""`numwatch.watch` on what Lightning Fabric and accelerate have set up, beyond the table."""

import importlib
import itertools

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import nn
from trainer_data import loader
from trainer_lightning import CADENCE
from trainer_nets import PLAIN

import numwatch
from numwatch.taps.wrappers import plain_model, plain_optimizer, precision_of, scaler_behind

NAMESPACES = ("lightning.fabric", "lightning_fabric")


def fabric_of(namespace, scaler=None, precision=None):
    Fabric = importlib.import_module(namespace).Fabric  # noqa: N806
    if scaler is None:
        return Fabric(accelerator="cpu", precision=precision)
    plugins = importlib.import_module(f"{namespace}.plugins")
    return Fabric(accelerator="cpu", plugins=plugins.MixedPrecision("16-mixed", "cpu", scaler))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_model_optimizer_scaler_and_precision_are_found_in_the_wrappers(namespace):
    scaler = torch.amp.GradScaler("cpu")
    fabric = fabric_of(namespace, scaler)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrapped, stepped in (
        fabric.setup(model, optimizer),
        (fabric.setup_module(model), fabric.setup_optimizers(optimizer)),
    ):
        assert plain_model(wrapped) is model
        assert plain_optimizer(stepped) is optimizer
        assert scaler_behind(wrapped) is scaler_behind(stepped) is scaler
        assert precision_of(wrapped) == "16-mixed"
    lightning_optimizer = LightningOptimizer(optimizer)
    assert plain_optimizer(lightning_optimizer) is plain_optimizer(optimizer) is optimizer
    assert plain_model(model) is model
    assert scaler_behind(model) is scaler_behind(optimizer) is precision_of(model) is None


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_skips_scales_and_culprits_are_known_without_a_word_of_the_scaler(
    namespace, fused, tmp_path
):
    fabric = fabric_of(namespace, torch.amp.GradScaler("cpu", init_scale=2.0**19))
    own = PLAIN.make()
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-2, fused=fused)
    model, stepped = fabric.setup(own, optimizer)
    weights = [own[4].weight.detach().clone()]
    with numwatch.watch(model, stepped, dir=tmp_path, **CADENCE) as watch:
        for x, y in loader(PLAIN.data()):
            loss = nn.functional.cross_entropy(model(x), y)
            fabric.backward(loss)
            stepped.step()
            watch.step(loss=loss)
            stepped.zero_grad()
            weights.append(own[4].weight.detach().clone())
    run = numwatch.open_run(tmp_path)
    steps = run.steps().to_pydict()
    skips = [torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert steps["skipped"] == skips
    assert {True, False} == set(skips)
    assert steps["loss_scale_before"] == [2.0**19 / 2 ** sum(skips[:n]) for n in range(len(skips))]
    assert "4.weight" in steps["nonfinite_parameters"][0]
    assert run.attempts[0]["precision"] == "16-mixed"
    assert {"0:input", "4:grad_input"} <= set(run.slots)


def test_a_module_of_fabric_is_trained_by_a_method_that_it_was_told_of(tmp_path):
    class Stepping(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = PLAIN.make()

        def training_step(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    fabric = fabric_of("lightning.fabric", precision="bf16-mixed")
    own = Stepping()
    model, optimizer = fabric.setup(own, torch.optim.SGD(own.parameters(), lr=0.1))
    model.mark_forward_method("training_step")
    with numwatch.watch(model, optimizer, dir=tmp_path, **CADENCE) as watch:
        for batch in loader(PLAIN.data()):
            loss = model.training_step(batch)
            fabric.backward(loss)
            optimizer.step()
            watch.step(loss=loss)
            optimizer.zero_grad()
    run = numwatch.open_run(tmp_path)
    assert set(run.tensors(slot="net.4:input")["step"].to_pylist()) == {0, 1, 2, 3}
    # On one device Fabric calls such a method without its autocast, and that is what is seen.
    assert run.slots["net.4:input"].format == "fp32"
    assert "forward" not in vars(own)


@pytest.mark.parametrize("method", ["forward", "training_step"])
def test_the_origin_of_a_failure_is_found_under_fabric(method, tmp_path):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = PLAIN.make()

        def forward(self, x):
            return self.net(x).log()

        training_step = forward

    fabric = fabric_of("lightning.fabric", precision="bf16-mixed")
    own = Failing()
    model, optimizer = fabric.setup(own, torch.optim.SGD(own.parameters(), lr=0.1))
    if method != "forward":
        model.mark_forward_method(method)
    x, y = next(iter(loader(PLAIN.data())))
    with numwatch.watch(model, optimizer, dir=tmp_path, **CADENCE) as watch:
        watch.shadow(lambda net: nn.functional.cross_entropy(net(x), y), (x, y))
        loss = nn.functional.cross_entropy(getattr(model, method)(x), y)
        fabric.backward(loss)
        optimizer.step()
        watch.step(loss=loss)
    (origin,) = [e for e in numwatch.open_run(tmp_path).events() if e["kind"] == "origin"]
    assert (origin["phase"], origin["operation"]) == ("forward", "aten.log.default")


@pytest.fixture
def _one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
def test_what_ddp_wraps_is_watched_under_the_paths_that_the_user_knows(tmp_path):
    model = PLAIN.make()
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert plain_model(wrapped) is model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with numwatch.watch(wrapped, optimizer, dir=tmp_path, **CADENCE) as watch:
        for x, y in loader(PLAIN.data()):
            loss = nn.functional.cross_entropy(wrapped(x), y)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
            optimizer.zero_grad()
    run = numwatch.open_run(tmp_path)
    assert run.tensors(slot="4:grad_input")["step"].to_pylist() == [0, 1, 2, 3]
    assert "4.weight:update" in run.updates()["slot"].to_pylist()
