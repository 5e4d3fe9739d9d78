"""Models of torchvision and timm, where they can be installed."""

import importlib

import pytest
import torch
from torch import nn
from training import Witness, fit

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.snapshot import ROLES

MODELS = {
    "torchvision.models": ("resnet18", "mobilenet_v3_small"),
    "timm.models": ("resnet10t", "levit_128s"),
}
CASES = [(library, name) for library, names in MODELS.items() for name in names]


class Classifier(nn.Module):
    """Returns what `transformers` returns of a model: an object with a loss."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, images, labels):
        self.loss = nn.functional.cross_entropy(self.body(images), labels)
        return self


def build(library, name):
    try:
        module = importlib.import_module(library)
    except (ImportError, RuntimeError) as error:  # torchvision of another torch raises the latter
        pytest.skip(f"{library} can not be imported here: {error}")
    torch.manual_seed(0)
    return Classifier(getattr(module, name)(num_classes=4))


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), CASES)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_training_is_the_same_and_every_matrix_is_seen(library, name, precision, tmp_path):
    bare, model = build(library, name), build(library, name)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "images": torch.rand(2, 3, 224, 224, generator=generator),
        "labels": torch.tensor([0, 3]),
    }
    witness = Witness(nn.Linear, nn.Conv2d)
    fit(bare, [batch], witness, precision=precision, tmp=tmp_path)
    monitor = NumericsMonitor(every_n_steps=1, strict=True, summary=False)
    fit(model, [batch], monitor, precision=precision, tmp=tmp_path)
    theirs, ours = bare.state_dict(), model.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    run = numwatch.open_run(monitor.directory)
    seen = set(run.tensors()["slot"].to_pylist())
    (first, *others) = witness.classes
    assert {f"{path}:{role}" for path in others for role in ROLES} <= seen
    assert {f"{first}:{role}" for role in ROLES if role != "grad_input"} <= seen
    assert [one for one in numwatch.diagnose(run) if one.severity == "critical"] == []
