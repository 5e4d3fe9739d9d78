import pytest
import torch
from shadow_harness import Compared, Net, loss_on, same, state_of
from torch import nn

BATCH = (24, 16)


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.generator = (i for i in range(3))

    def forward(self, x):
        return self.linear(x)


def raising(_):
    raise KeyError("a test's")


class Selfish(nn.BatchNorm1d):
    """A part that is shared by all copies of what holds it."""

    def __deepcopy__(self, _memo):
        return self


class SharesMemory(Selfish):
    def __deepcopy__(self, _memo):
        twin = nn.BatchNorm1d(self.num_features)
        twin.running_mean = self.running_mean
        return twin


def holding(part):
    return lambda: nn.Sequential(nn.Linear(16, 4), part(4)).half()


def through_the_original(model):
    return lambda _copied: loss_on(torch.randn(*BATCH))(model)


def in_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        return loss_on(torch.randn(*BATCH))(model)


def on_ones(_):
    return loss_on(torch.ones(*BATCH))


@pytest.mark.parametrize(
    ("model", "loss_of", "why"),
    [
        (Uncopyable, on_ones, "TypeError: cannot pickle 'generator'"),
        (Net, lambda _: raising, 'KeyError: "a test\'s"'),
        (
            holding(Selfish),
            on_ones,
            "1 has a __deepcopy__ of its own",
        ),
        (
            holding(SharesMemory),
            on_ones,
            "1 has a __deepcopy__ of its own",
        ),
        (Net, through_the_original, "a copy of the model calls a Net of the model itself"),
        (Net, lambda _: in_autocast, "the step computes in bfloat16 of its own accord"),
    ],
)
def test_what_can_not_run_is_said_once_and_harms_nothing(model, loss_of, why):
    model = model()
    watched = Compared(model)
    before = state_of(model)
    with pytest.warns(RuntimeWarning, match="numwatch takes no shadow steps") as caught:
        assert watched.run_shadow(loss_of(model)) == {}
    assert why in str(caught[0].message)
    assert same(before, state_of(model))
    assert watched.run_shadow(loss_of(model)) == {}  # in silence, else filterwarnings raises
    assert watched.shadows() == {}
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("loss", [None, torch.tensor(0.0)])
def test_step_without_a_loss_is_only_this_batchs(loss):
    watched = Compared(Net())
    assert watched.run_shadow(lambda _: loss) == {}
    assert watched.run_shadow(loss_on(torch.randn(*BATCH)))


def with_norm(norm):
    model = nn.Sequential(norm(nn.Linear(16, 8)), nn.Linear(8, 2))
    model(torch.randn(2, 16))  # their weight is now a tensor inside a graph
    return model


def in_sequence(module):
    """Takes [batch, features] as one sequence, and the first of the module's results."""

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = module, nn.Linear(16, 2)

        def forward(self, x):
            y = self.inner(x[None])
            return self.head(y[0] if isinstance(y, tuple) else y)

    return Sequence()


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_norm(nn.utils.weight_norm),
        lambda: with_norm(nn.utils.spectral_norm),
        lambda: with_norm(nn.utils.parametrizations.weight_norm),
        lambda: with_norm(nn.utils.parametrizations.spectral_norm),
        lambda: in_sequence(nn.LSTM(16, 16, num_layers=2, dropout=0.3, batch_first=True)),
        lambda: in_sequence(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)),
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 2))),
        lambda: nn.Sequential(nn.Linear(16, 8).requires_grad_(False), nn.Linear(8, 2)),
        lambda: nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 2)).double(),
    ],
    ids=[
        "weight_norm",
        "spectral_norm",
        "new_weight_norm",
        "new_spectral_norm",
        "LSTM",
        "transformer",
        "fx",
        "frozen",
        "FP64",
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_odd_modules_are_left_alone_and_repeated_bit_for_bit(make):
    model = make()
    loss_of = loss_on(torch.randn(*BATCH).to(next(model.parameters()).dtype))
    watched = Compared(model)
    before = state_of(model)
    assert watched.run_shadow(loss_of)
    assert same(before, state_of(model))
    loss_of(model).backward()
    shadows = watched.shadows()
    assert shadows
    assert all(shadow.relative_error == 0 for shadow in shadows.values())


def test_lazy_modules_are_still_lazy_for_the_run():
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2))
    x = torch.randn(*BATCH)
    watched = Compared(model)
    state = torch.get_rng_state()
    assert watched.run_shadow(loss_on(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert nn.parameter.is_lazy(model[0].weight)
    loss_on(x)(model).backward()  # draws the weights that the shadow had
    assert watched.shadows()["1:grad_output"].relative_error == 0


def test_distributed_run_has_none(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.warns(RuntimeWarning, match="the run is distributed"):
        Compared(Net()).run_shadow(loss_on(torch.ones(*BATCH)))
