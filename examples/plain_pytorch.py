"""FP16 autocast with a gradient scaler in a plain PyTorch loop, watched.

python examples/plain_pytorch.py
"""

import torch
from torch import nn

import numwatch

EPOCHS, STEPS, BATCH = 2, 100, 64


def main() -> None:
    """Trains two epochs, watched."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10)).to(
        device
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, growth_interval=20)
    teacher = torch.randn(64, 10, device=device)

    with numwatch.watch(
        model, optimizer, scaler=scaler, dir="runs/plain", every_n_steps=10
    ) as watch:
        for _ in range(EPOCHS):
            for _ in range(STEPS):
                x = torch.randn(BATCH, 64, device=device)
                labels = (x @ teacher).argmax(dim=1)
                with torch.autocast(device, torch.float16):
                    loss = nn.functional.cross_entropy(model(x), labels)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                watch.step(loss=loss)
            watch.end_epoch()
    print("\nnumwatch report runs/plain")


if __name__ == "__main__":
    main()
