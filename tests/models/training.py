"""Trains a model under Lightning, and looks at it with plain hooks alone."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision


class Task(pl.LightningModule):
    """Trains a model by the loss that it returns itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def fit(model, batches, *callbacks, precision="32-true", tmp=""):
    """Trains on the batches with a seed of its own, so that two fits do the same."""
    if precision == "16-mixed":  # real FP16 on a CPU
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        options = {"plugins": MixedPrecision("16-mixed", "cpu", scaler)}
    else:
        options = {"precision": precision}
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=str(tmp),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(Task(model), torch.utils.data.DataLoader(batches, batch_size=None))


class Witness(pl.Callback):
    """Sees with plain hooks which modules of some classes ran in the first step, and their tensors.

    Attributes:
        seen: Tensors by slot, gradients as backward had them.
        classes: Class of each module that ran, by path.
    """

    def __init__(self, *kinds):
        self.seen, self.classes = {}, {}
        self._kinds, self._handles = kinds, []

    def on_train_start(self, trainer, pl_module):
        for path, module in pl_module.named_modules():
            if isinstance(module, self._kinds):
                self._handles.append(module.register_forward_hook(self._note(path)))

    def on_train_batch_end(self, *_):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note(self, path):
        def hook(module, args, output):
            self.classes[path] = type(module).__name__
            keep = self.seen.__setitem__
            for role, tensor in (("input", args[0]), ("weight", module.weight), ("output", output)):
                keep(f"{path}:{role}", tensor.detach().clone())
            output.register_hook(lambda g: keep(f"{path}:grad_output", g.clone()))
            weight = module.weight.register_hook(lambda g: keep(f"{path}:grad_weight", g.clone()))
            self._handles.append(weight)

        return hook
