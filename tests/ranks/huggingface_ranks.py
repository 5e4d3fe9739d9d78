"""What each of several ranks does under Hugging Face's Trainer: with numwatch and without."""

import sys
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from numwatch.callbacks.huggingface import NumericsCallback


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x, labels):
        return {"loss": nn.functional.mse_loss(self.head(self.body(x).relu()), labels)}


def trained(directory, *callbacks):
    torch.manual_seed(0)
    data = [{"x": torch.randn(8), "labels": torch.randn(4)} for _ in range(64)]
    model = Regression()
    arguments = TrainingArguments(
        str(directory),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=8,
        num_train_epochs=1,
        save_strategy="no",
        logging_strategy="no",
    )
    Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks)).train()
    return model.state_dict()


def main():
    directory = Path(sys.argv[1])
    bare = trained(directory)
    callback = NumericsCallback(every_n_steps=1, strict=True, summary=False)
    ours = trained(directory, callback)
    print("same", all(torch.equal(bare[name], ours[name]) for name in bare))


if __name__ == "__main__":
    main()
