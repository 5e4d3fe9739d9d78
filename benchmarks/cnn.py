"""The convolutional network that overhead is measured on: a ResNet of plain torch."""

from collections.abc import Sequence

from torch import Tensor, nn


class ResNet(nn.Module):
    """Maps images [batch, 3, side, side] to logits [batch, classes]."""

    def __init__(
        self, widths: Sequence[int], depth: int, classes: int, *, large_images: bool = False
    ) -> None:
        """Builds `depth` blocks of each width; the stem takes large images down to a quarter."""
        super().__init__()
        width = widths[0]
        if large_images:
            stem = [nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width)]
            self.stem = nn.Sequential(*stem, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))
        else:
            stem = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            self.stem = nn.Sequential(*stem, nn.ReLU(inplace=True))
        blocks = []
        for stage, out in enumerate(widths):
            for block in range(depth):
                blocks.append(Block(width, out, 2 if stage and not block else 1))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


class Block(nn.Module):
    """Two convolutions with batch norms, added to what came in."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Returns [batch, out, side / stride, side / stride]."""
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
