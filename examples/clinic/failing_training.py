"""Runs that fail by their model, loss, data or hyper-parameters, in whatever precision."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from numwatch.demo.text import encode

from .case import Case, Setup
from .data import FEATURES, images, regression, sequence, shuffled, text, tokens, vectors
from .gan import Gan
from .models import (
    Attention,
    Encoder,
    Model,
    Recurrent,
    adamw,
    convnet,
    cross_entropy,
    mean_square,
    mlp,
    sgd,
)


class UnitNorm(nn.Module):
    """Divides by the norm, of whatever comes."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns unit vectors along the last dimension."""
        return x / x.norm(dim=-1, keepdim=True)


def _empty_token() -> Setup:
    """Vectors scaled to length 1, of which padding is all zeros: 0/0."""
    x, labels = tokens()
    x[::40, -3:] = 0.0
    net = nn.Sequential(UnitNorm(), Encoder())
    return Setup(Model(net, cross_entropy, adamw()), shuffled(x, labels))


def _empty_sentence() -> Setup:
    """A padding mask that hides every token of a sentence: softmax over -inf alone."""
    x, labels = tokens()
    lengths = torch.randint(1, 13, (len(x),))
    lengths[77] = 0
    mask = (torch.arange(12) < lengths[:, None])[:, None, None].expand(-1, 1, 12, 12)
    return Setup(Model(Encoder(), cross_entropy, adamw()), shuffled(x, mask, labels))


def _dead_channel() -> Setup:
    """A BatchNorm by hand, without an eps, over a channel that is constant: 0/0."""
    pictures, labels = images()
    net = convnet()
    net[4] = Standardised()
    with torch.no_grad():
        net[3].weight[3] = 0.0
    return Setup(Model(net, cross_entropy, adamw()), shuffled(pictures, labels))


class Standardised(nn.Module):
    """Takes off the mean of each channel and divides by its deviation: [batch, channels, ·, ·]."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns channels of mean 0 and deviation 1."""
        deviation, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True)
        return (x - mean) / deviation


def _distance_to_itself() -> Setup:
    """The square root of a distance that is 0 for a pair of equals: its slope is infinite."""
    x, y = regression(outputs=4)
    x[11] = 0.0

    class Distance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = mlp(64, last=4)

        def forward(self, x: Tensor) -> Tensor:
            near, far = self.embed(x), self.embed(-x)
            return torch.sqrt((near - far).square().sum(dim=-1))

    def hinge(distances: Tensor, targets: Tensor) -> Tensor:
        return (distances.float() - targets[:, 0]).square().mean()

    return Setup(Model(Distance(), hinge, adamw()), shuffled(x, y))


def _missing_word() -> Setup:
    """The embedding of a rare character was the mean of no vectors: NaN in a parameter."""
    model = Recurrent()
    with torch.no_grad():
        model.tokens.weight[encode("W")] = torch.zeros(0, 64).mean(dim=0)
    return Setup(Model(model, cross_entropy, adamw()), text())


def _dead_relus() -> Setup:
    """A bias of -100 before a ReLU: a layer that is never on."""
    net = mlp(64, 64, 64)
    with torch.no_grad():
        net[2].bias -= 100.0
    return Setup(Model(net, cross_entropy, adamw()), shuffled(*vectors()))


def _sigmoids() -> Setup:
    """Twelve layers of sigmoids: each divides the gradient by four and more."""
    net = mlp(*[32] * 12, activation=nn.Sigmoid)
    return Setup(Model(net, cross_entropy, sgd(0.1)), shuffled(*vectors()))


def _too_wide_weights() -> Setup:
    """Twelve layers whose weights are twice too large: each multiplies the gradient."""
    net = mlp(*[64] * 12)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                layer.weight *= 2.0
    return Setup(
        Model(net, cross_entropy, sgd(1e-2)),
        shuffled(*vectors()),
        trainer={"gradient_clip_val": 1.0},
    )


def _far_too_fast() -> Setup:
    """A learning rate that a schedule multiplies by 300 at step 100."""
    x, y = regression()

    def schedule(step: int) -> float:
        return 1.0 if step < 100 else 300.0

    return Setup(Model(mlp(64, 64, last=8), mean_square, adamw(3e-3), schedule), shuffled(x, y))


def _sharp_attention() -> Setup:
    """A learning rate of 1 for queries and keys that nothing normalises: the scores grow."""
    net = Encoder(Attention(softmax=Scores()))
    projection = list(net.attention.qkv.parameters())
    known = {id(parameter) for parameter in projection}

    def two_rates(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        others = [parameter for parameter in parameters if id(parameter) not in known]
        groups = [{"params": projection, "lr": 1.0}, {"params": others, "lr": 3e-3}]
        return torch.optim.AdamW(groups)

    return Setup(
        Model(net, cross_entropy, two_rates, lambda step: min(1.0, (step + 1) / 60)),
        shuffled(*tokens()),
        monitor={"include": ["net.*"]},
    )


class Scores(nn.Module):
    """The softmax over attention scores, as a module that can be watched."""

    def forward(self, scores: Tensor) -> Tensor:
        """Returns probabilities along the last dimension."""
        return torch.softmax(scores, dim=-1)


def _new_sensor() -> Setup:
    """Features that are 0 until step 200: Adam's second moment has never seen their gradients."""
    steps, on, new = 260, 200, slice(0, 8)
    x, _ = regression(steps * 64)
    y = 0.3 * torch.sin(x[:, 8:] @ torch.randn(FEATURES - 8, 8) / 5)
    x[: on * 64, new] = 0.0
    x[on * 64 :, new] *= 10.0
    net = mlp(64, 64, last=8)
    with torch.no_grad():
        net[0].weight[:, new] = 0.0

    def batch(index: int) -> tuple[Tensor, Tensor]:
        part = slice(64 * index, 64 * index + 64)
        return x[part], y[part]

    return Setup(
        Model(net, mean_square, adamw(1e-2, betas=(0.9, 0.999))),
        sequence(batch, steps),
        # RMS_t is known on full steps alone, and this one lasts for three.
        monitor={"every_n_steps": 1},
    )


def _large_eps() -> Setup:
    """An eps that was raised to dodge FP16 and is far above most gradients."""
    return Setup(Model(mlp(64, 64), cross_entropy, adamw(eps=1e-1)), shuffled(*vectors()))


def _lstm() -> Setup:
    """A recurrent matrix far above 1 and a large learning rate, without clipping."""
    model = Recurrent()
    with torch.no_grad():
        model.lstm.weight_hh_l0 *= 12.0
    return Setup(Model(model, cross_entropy, sgd(100.0)), text())


def _gan() -> Setup:
    """A GAN whose discriminator becomes certain: log(1 - D) of D = 1."""
    points = torch.randn(4096, 2) * 0.05 + torch.tensor([4.0, 4.0])
    return Setup(Gan(by_hand=True, lr=2e-2), shuffled(points, batch=64))


FAILING_TRAINING = (
    Case(
        "transformer-zero-norm",
        "x / 0 where padding has no length",
        ("nan-in-forward",),
        "16-mixed",
        60,
        _empty_token,
    ),
    Case(
        "transformer-empty-sentence",
        "softmax over a row masked whole",
        ("nan-in-forward",),
        "bf16-mixed",
        60,
        _empty_sentence,
    ),
    Case(
        "cnn-batchnorm-no-eps",
        "variance 0, eps=0",
        ("nan-in-forward",),
        "bf16-mixed",
        40,
        _dead_channel,
    ),
    Case(
        "siamese-sqrt-zero",
        "slope of sqrt at 0",
        ("nan-in-backward",),
        "bf16-mixed",
        60,
        _distance_to_itself,
    ),
    Case(
        "lstm-missing-word",
        "NaN in an embedding row",
        ("nan-in-parameter",),
        "bf16-mixed",
        60,
        _missing_word,
    ),
    Case("mlp-dead-relus", "bias -100 before a ReLU", ("dead-layer",), "16-mixed", 80, _dead_relus),
    Case(
        "mlp-deep-sigmoids",
        "twelve sigmoids",
        ("vanishing-gradients",),
        "bf16-mixed",
        80,
        _sigmoids,
    ),
    Case(
        "mlp-large-weights",
        "weights twice too large",
        ("exploding-gradients",),
        "bf16-mixed",
        60,
        _too_wide_weights,
    ),
    Case(
        "mlp-learning-rate",
        "lr=0.9 from step 100",
        ("loss-spike", "gradient-norm-spike", "exploding-gradients"),
        "32-true",
        160,
        _far_too_fast,
    ),
    Case(
        "transformer-sharp-attention",
        "lr=1 for queries and keys",
        ("attention-logit-growth",),
        "bf16-mixed",
        150,
        _sharp_attention,
    ),
    Case(
        "mlp-new-sensor",
        "β2=.999, features switched on at step 200",
        ("rms-spike",),
        "bf16-mixed",
        260,
        _new_sensor,
    ),
    Case("mlp-large-eps", "eps=0.1 above √v", ("eps-above-sqrt-v",), "bf16-mixed", 80, _large_eps),
    Case(
        "lstm-exploding",
        "recurrent weights times 12, lr=100",
        ("exploding-gradients", "gradient-norm-spike", "loss-spike"),
        "32-true",
        120,
        _lstm,
    ),
    Case("gan-log-zero", "log(1 - D) of D = 1", ("nan-in-loss",), "bf16-mixed", 200, _gan),
)
