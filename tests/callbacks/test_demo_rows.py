"""The record of the demo's GPT in each precision against tensors saved by independent hooks."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.demo.gpt import GPT, GPTConfig
from numwatch.demo.precision import PRECISIONS
from numwatch.demo.text import Windows, corpus, split

STEP = 1
CONFIG = GPTConfig(context=16, layers=2, heads=2, width=32, dropout=0.1)


class Saver(pl.Callback):
    """Keeps every tensor of one step by torch's own module hooks."""

    def __init__(self):
        self.saved = {}
        self.on = False

    def keep(self, slot, *tensors):
        if self.on:
            for tensor in tensors:
                if tensor is not None and tensor.is_floating_point():
                    self.saved.setdefault(slot, []).append(tensor.detach().double().clone())

    def on_train_start(self, trainer, pl_module):
        for path, module in pl_module.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(
                    lambda _, x, y, path=path: (
                        (
                            self.keep(f"{path}:input", *x),
                            self.keep(f"{path}:output", y),
                        )
                        and None
                    )
                )
                module.register_full_backward_hook(
                    lambda _, dx, dy, path=path: (
                        (
                            self.keep(f"{path}:grad_input", *dx),
                            self.keep(f"{path}:grad_output", *dy),
                        )
                        and None
                    )
                )
                module.weight.register_post_accumulate_grad_hook(
                    lambda weight, path=path: self.keep(f"{path}:grad_weight", weight.grad)
                )
            elif isinstance(module, (nn.Embedding, nn.LayerNorm)):
                module.register_forward_hook(
                    lambda _, x, y, path=path: self.keep(f"{path}:output", y)
                )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.on = trainer.global_step == STEP
        for path, module in pl_module.named_modules():
            if isinstance(module, nn.Linear):
                self.keep(f"{path}:weight", module.weight)

    def on_train_batch_end(self, *_):
        self.on = False


def expected_row(tensors):
    x = np.concatenate([tensor.flatten().numpy() for tensor in tensors])
    finite = x[np.isfinite(x)]
    magnitudes = np.abs(finite[finite != 0])
    exponents = np.clip(np.frexp(magnitudes)[1] - 1, -127, 127)
    binades = np.bincount(exponents + 127, minlength=255)
    filled = np.flatnonzero(binades)
    return {
        "numel": x.size,
        "zeros": int((x == 0).sum()),
        "nans": int(np.isnan(x).sum()),
        "posinfs": int(np.isposinf(x).sum()),
        "neginfs": int(np.isneginf(x).sum()),
        "amax": magnitudes.max(initial=0.0),
        "amin": magnitudes.min(initial=np.inf),
        "binade_first": int(filled[0]) - 127,
        "binades": binades[filled[0] : filled[-1] + 1].tolist(),
    }, (finite.sum(), (finite**2).sum())


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_rows_of_one_step_are_those_of_the_saved_tensors(precision, tmp_path):
    torch.manual_seed(0)
    chosen = PRECISIONS[precision]
    monitor = NumericsMonitor(update_samples=0, every_n_steps=1, strict=True, summary=False)
    saver = Saver()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEP + 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        callbacks=[*chosen.callbacks(), monitor, saver],
        **chosen.trainer("cpu"),
    )
    training, _ = split(corpus())
    loader = DataLoader(Windows(training, CONFIG.context), batch_size=4, drop_last=True)
    trainer.fit(GPT(CONFIG, chosen.optimizer), loader)

    rows = numwatch.open_run(monitor.directory).tensors(first=STEP, last=STEP).to_pylist()
    assert {row["slot"] for row in rows} == saver.saved.keys()
    for row in rows:
        expected, (total, squares) = expected_row(saver.saved[row["slot"]])
        assert {name: row[name] for name in expected} == expected, row["slot"]
        scale = np.sqrt(squares * row["numel"])
        assert row["sum"] == pytest.approx(total, abs=1e-6 * scale)
        assert row["sumsq"] == pytest.approx(squares, rel=1e-6)
        scaled = precision == "16-mixed" and ":grad_" in row["slot"]
        assert row["loss_scale"] == (2.0**16 if scaled else 1.0)
        has_cast = precision == "fp8" and row["slot"].startswith("blocks")
        cast_roles = ("input", "weight", "grad_output")
        assert (row["cast_format"] is not None) == (
            has_cast and row["slot"].split(":")[1] in cast_roles and "ln" not in row["slot"]
        )
