"""Plans for tests, and a small LightningModule to train under them."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from numwatch.plan import ModulePlan, Operand, Plan
from numwatch.plan.checks import format_for
from numwatch.recipes.spec import parse_recipe


def operand(fmt, recipe="current", rounding="nearest"):
    recipe = parse_recipe(recipe)
    return Operand(format_for(fmt, recipe), recipe, rounding)


def triple(name, x, weight=None, gradient=None):
    weight, gradient = weight or x, gradient or x
    return ModulePlan(name, {"input": x, "weight": weight, "grad_output": gradient})


FP8 = (operand("e4m3"), operand("e4m3"), operand("e5m2"))
ROWWISE = (operand("e4m3", "rowwise:power_of_two=true"),)
DELAYED = (
    operand("e4m3", "delayed:history=4"),
    operand("e4m3", "delayed:history=4"),
    operand("e5m2", "delayed:history=4"),
)
MXFP8 = (operand("mxfp8-e4m3", "mx:rule=rceil"),)
MXFP4 = (operand("mxfp4", "mx"),)
BLOCK = (
    operand("block-fp8-1x128", "block"),
    operand("block-fp8-128x128", "block"),
    operand("block-fp8-1x128", "block"),
)
NVFP4 = (
    operand("nvfp4", "nvfp4:hadamard=true"),
    operand("nvfp4", "nvfp4:square=true"),
    operand("nvfp4", "nvfp4:hadamard=true", "stochastic"),
)
STATIC = (operand("e4m3", "static:scale=16"), operand("e4m3", "static:scale=64"), operand("e5m2"))
RECIPES = {
    "fp8": FP8,
    "rowwise": ROWWISE,
    "delayed": DELAYED,
    "mxfp8": MXFP8,
    "mxfp4": MXFP4,
    "block": BLOCK,
    "nvfp4": NVFP4,
    "static": STATIC,
}


def plan_for(operands, *names, target="fp8"):
    return Plan(target, modules=tuple(triple(name, *operands) for name in names))


class Net(pl.LightningModule):
    """fc1, dropout, fc2, head: maps [N, 32] to [N, 16]."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.fc1 = nn.Linear(32, 64)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(64, 48, bias=False)
        self.head = nn.Linear(48, 16)
        self.losses = []

    def forward(self, x):
        return self.head(torch.relu(self.fc2(self.dropout(torch.relu(self.fc1(x))))))

    def training_step(self, batch, _):
        x, y = batch
        loss = (self(x.to(self.fc1.weight.dtype)).float() - y).square().mean()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val", (self(x.to(self.fc1.weight.dtype)).float() - y).square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, eps=1e-6)


def data(batch=48):
    x = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.sin(x[:, :16] * 2)), batch_size=batch)


def fit(model, *callbacks, steps=2, validate=False, ckpt=None, batch=48, **arguments):
    arguments = {
        "precision": "bf16-mixed",
        "logger": False,
        "enable_checkpointing": False,
        **arguments,
    }
    trainer = pl.Trainer(
        max_steps=steps,
        limit_val_batches=int(validate),
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{name: value for name, value in arguments.items() if value is not None},
    )
    loader = data(batch)
    trainer.fit(model, loader, loader, ckpt_path=ckpt)
    return trainer
