"""Lightning fits of compiled models: whole modules, modules inside, modules called in turn."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

import numwatch
from numwatch.callbacks import NumericsMonitor

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 10


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.norm = nn.Linear(8, 16), nn.ReLU(inplace=True), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(self.act(self.fc(x)))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = Body()
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def whole(module):
    return torch.compile(module, backend="aot_eager", fullgraph=False)


def forward_alone(module):
    module.forward = torch.compile(module.forward, backend="aot_eager", fullgraph=True)
    return module


def submodule(module):
    module.body.compile(backend="aot_eager", fullgraph=True)
    return module


@pytest.fixture(autouse=True)
def _compiles_afresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def fit(how, directory, callbacks=()):
    torch._dynamo.reset()
    counters.clear()
    module = Module()
    x = torch.randn(4 * STEPS, 8, generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, 4, (4 * STEPS,), generator=torch.Generator().manual_seed(2))
    loader = DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        val_check_interval=5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        callbacks=list(callbacks),
    )
    trainer.fit(how(module), loader, loader)
    breaks, graphs = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
    return module.state_dict(), breaks, graphs, sum(counters["recompiles"].values())


@pytest.mark.parametrize("how", [whole, forward_alone, submodule])
def test_fits_are_bitwise_the_same_with_no_more_breaks_or_graphs(how, tmp_path):
    bare = fit(how, tmp_path / "bare")
    monitor = NumericsMonitor(
        3, 1, dir=str(tmp_path / "run"), summary=False, strict=True, shadow_every_n_steps=0
    )
    ours = fit(how, tmp_path / "watched", [monitor])
    assert all(map(torch.equal, bare[0].values(), ours[0].values()))
    assert ours[1:] == bare[1:]
    rows = numwatch.open_run(monitor.directory).tensors().to_pylist()
    for slot in ("body.fc:input", "body.fc:grad_weight", "body.norm:output", "head:grad_output"):
        assert [row["step"] for row in rows if row["slot"] == slot] == list(range(2 * STEPS)), slot
    assert {row["numel"] for row in rows if row["slot"] == "head:grad_input"} == {64}
