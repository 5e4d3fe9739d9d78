"""FP16 runs whose forward, loss or data is not finite."""

import torch
from torch import Tensor, nn

from .case import Case, Setup
from .data import FEATURES, regression, sequence, shuffled, tokens, vectors
from .models import (
    Attention,
    Encoder,
    Model,
    adamw,
    cross_entropy,
    mlp,
)


def _constant_feature() -> Setup:
    """Features standardised by their deviation, of which one is constant: 0/0 in the data."""
    x, labels = vectors()
    x[:, 3] = 1.0
    return Setup(
        Model(mlp(64, 64), cross_entropy, adamw()), shuffled((x - x.mean(0)) / x.std(0), labels)
    )


def _late_sensor_fault() -> Setup:
    """Batches that from the 30th on hold a NaN each."""
    x, labels = vectors(80 * 64)

    def batch(index: int) -> tuple[Tensor, Tensor]:
        part = slice(64 * index, 64 * index + 64)
        inputs = x[part].clone()
        if index >= 30:
            inputs[5, 7] = torch.nan
        return inputs, labels[part]

    return Setup(Model(mlp(64, 64), cross_entropy, adamw()), sequence(batch, 80))


def _raw_timestamps() -> Setup:
    """A feature that is a time in seconds, some 1.7e9: infinite as soon as it is cast."""
    x, labels = vectors()
    x[:, 0] = 1.7e9 + 1e5 * torch.rand(len(x))
    return Setup(Model(mlp(64, 64), cross_entropy, adamw()), shuffled(x, labels))


class NaiveNorm(nn.Module):
    """A LayerNorm by hand, in the dtype of what comes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last dimension."""
        mean = x.mean(dim=-1, keepdim=True)
        variance = (x * x).mean(dim=-1, keepdim=True) - mean * mean
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.gain


def _naive_variance() -> Setup:
    """A LayerNorm by hand of some ±300: squares leave FP16, x/inf is 0, no NaN tells of it."""
    x, labels = vectors()
    net = nn.Sequential(
        nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), NaiveNorm(64), nn.Linear(64, 10)
    )
    return Setup(Model(net, cross_entropy, adamw()), shuffled(1000.0 * x, labels))


def _exp_softmax(scores: Tensor) -> Tensor:
    powers = torch.exp(scores)
    return powers / powers.sum(dim=-1, keepdim=True)


def _softmax_without_maximum() -> Setup:
    """Attention scores above 11.09, whose exp leaves FP16."""
    net = Encoder(Attention(softmax=_exp_softmax))
    with torch.no_grad():
        net.attention.qkv.weight *= 4.0
    return Setup(Model(net, cross_entropy, adamw()), shuffled(*tokens()))


def _residual_growth() -> Setup:
    """A residual stream that nothing normalises and that the loss pushes up, until it overflows."""
    x, _ = regression()
    net = nn.Sequential(nn.Linear(FEATURES, 64), *(Residual(64) for _ in range(4)))

    def grow(outputs: Tensor, _: Tensor) -> Tensor:
        return -outputs.float().square().mean().log()

    return Setup(Model(net, grow, adamw(2e-3)), shuffled(x, x), scaler={"init_scale": 2.0**10})


class Residual(nn.Module):
    """x + W2 relu(W1 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the branch."""
        return x + self.second(torch.relu(self.first(x)))


def _hand_written_entropy() -> Setup:
    """A cross entropy by hand: the log of a probability that FP16 rounds to 0 or 1."""
    x, labels = vectors()
    truth = (labels % 2).float()[:, None]

    def entropy(logits: Tensor, truth: Tensor) -> Tensor:
        p = torch.sigmoid(logits)
        return -(truth * torch.log(p) + (1 - truth) * torch.log(1 - p)).mean()

    return Setup(Model(mlp(64, 64, last=1), entropy, adamw(3e-2)), shuffled(4 * x, truth))


FAILING_OVERFLOW = (
    Case(
        "fp16-constant-feature",
        "0/0 in the data",
        ("nan-in-data",),
        "16-mixed",
        60,
        _constant_feature,
    ),
    Case(
        "fp16-sensor-fault",
        "NaN in the data from step 30",
        ("nan-in-data",),
        "16-mixed",
        80,
        _late_sensor_fault,
    ),
    Case(
        "fp16-raw-timestamps",
        "a feature of 1.7e9",
        ("forward-overflow",),
        "16-mixed",
        60,
        _raw_timestamps,
    ),
    Case(
        "fp16-naive-variance",
        "squares of ±300 by hand: inf, then x/inf = 0",
        ("sensitive-operation-low", "dead-layer"),
        "16-mixed",
        60,
        _naive_variance,
    ),
    Case(
        "fp16-softmax-by-hand",
        "exp above 11.09",
        ("forward-overflow", "sensitive-operation-low"),
        "16-mixed",
        60,
        _softmax_without_maximum,
    ),
    Case(
        "fp16-residual-growth",
        "a stream without norm",
        ("activation-growth", "forward-overflow"),
        "16-mixed",
        120,
        _residual_growth,
    ),
    Case(
        "fp16-entropy-by-hand",
        "log(0) in the loss",
        ("nan-in-loss",),
        "16-mixed",
        120,
        _hand_written_entropy,
    ),
)
