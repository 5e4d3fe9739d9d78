"""What `watch` takes as optimizers."""

import pytest
import torch
from torch import nn

import numwatch


class Duck:
    """Steps what another optimizer holds, and is none of torch's."""

    def __init__(self, inner):
        self.inner, self.param_groups = inner, inner.param_groups

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("give", [lambda o: o, lambda o: [o], lambda o: (one for one in [o])])
def test_a_wrapper_of_an_optimizer_is_one(tmp_path, give):
    model = nn.Sequential(nn.Linear(4, 4))
    duck = Duck(torch.optim.SGD(model.parameters(), lr=0.1))
    with numwatch.watch(
        model, give(duck), dir=tmp_path, summary=False, strict=True, every_n_steps=1
    ) as watch:
        model(torch.randn(2, 4)).sum().backward()
        duck.step()
        watch.step()
    run = numwatch.open_run(tmp_path)
    assert run.steps()["lr"].to_pylist() == [0.1]
    assert run.updates().num_rows


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("adam", "str"),
        (3, "int"),
        ([nn.Linear(4, 4)], "Linear"),
        (nn.Linear(4, 4).parameters(), "Parameter"),
    ],
)
def test_what_is_no_optimizer_is_refused_in_words(tmp_path, given, kind):
    with pytest.raises(numwatch.NumwatchError, match=f"a list of them or None; a {kind} came"):
        numwatch.watch(nn.Linear(4, 4), given, dir=tmp_path)
