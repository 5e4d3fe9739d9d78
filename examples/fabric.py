"""Mixed precision in a Lightning Fabric loop with gradient accumulation, watched.

python examples/fabric.py
"""

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import numwatch

EPOCHS, BATCHES, BATCH, WINDOW = 2, 100, 64, 2


def main() -> None:
    """Trains two epochs, watched."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # `precision="16-mixed"` does on a GPU; on a CPU Fabric would turn it into BF16.
    scaler = torch.amp.GradScaler(device, growth_interval=20)
    fabric = Fabric(accelerator=device, plugins=MixedPrecision("16-mixed", device, scaler))
    fabric.launch()

    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = fabric.setup(model, optimizer)
    x = torch.randn(BATCHES * BATCH, 64)
    labels = (x @ torch.randn(64, 10)).argmax(dim=1)
    data = fabric.setup_dataloaders(DataLoader(TensorDataset(x, labels), BATCH, shuffle=True))

    # What Fabric has set up is taken as it is: the scaler is found within.
    with numwatch.watch(model, optimizer, dir="runs/fabric", every_n_steps=10) as watch:
        for _ in range(EPOCHS):
            for number, (inputs, targets) in enumerate(data, 1):
                loss = nn.functional.cross_entropy(model(inputs), targets) / WINDOW
                fabric.backward(loss)
                if number % WINDOW:
                    watch.add_loss(loss)
                    continue
                # What is not finite the scaler skips.
                fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False)
                optimizer.step()
                watch.step(loss=loss)
                optimizer.zero_grad()  # after watch.step, which names who overflowed
            watch.end_epoch()
    print("\nnumwatch report runs/fabric")


if __name__ == "__main__":
    main()
