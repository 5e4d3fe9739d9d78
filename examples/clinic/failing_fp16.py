"""FP16 runs that lose gradients or updates, or whose loss scale goes wrong."""

from torch import Tensor, nn

from .case import Case, Setup
from .data import images, regression, shuffled, text, vectors
from .models import (
    Model,
    Recurrent,
    adamw,
    convnet,
    cross_entropy,
    mean_square,
    mlp,
    sgd,
)

STATIC = 10**9
"""A growth interval never reached: the loss scale does not grow."""


def _segmentation() -> Setup:
    """A loss averaged over pixels: at a small static loss scale a gradient's tail is flushed."""
    pictures, labels = images(512)
    masks = labels[:, None, None] * (pictures[:, 0] > 0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 10, 1),
    )

    def per_pixel(logits: Tensor, masks: Tensor) -> Tensor:
        return cross_entropy(logits.movedim(1, -1), masks)

    return Setup(
        Model(net, per_pixel, adamw(3e-3)),
        shuffled(pictures, masks),
        # As 512 times as many pixels would at loss scale 1.
        scaler={"init_scale": 2.0**-9, "growth_interval": STATIC},
    )


def _small_units() -> Setup:
    """Targets in units so small that at loss scale 1 no gradient of the first layers is left."""
    x, y = regression()
    net = nn.Sequential(mlp(64, 64, activation=nn.Tanh, last=8), Times(1e-4))
    return Setup(
        Model(net, mean_square, adamw()),
        shuffled(x, 1e-4 * y),
        scaler={"init_scale": 1.0, "growth_interval": STATIC},
    )


class Times(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Returns `factor * x`, in FP32."""
        return self.factor * x.float()


def _deep_sigmoids() -> Setup:
    """Twelve layers of sigmoids at loss scale 1: halfway down no gradient is left of FP16's."""
    net = mlp(*[32] * 12, activation=nn.Sigmoid)
    return Setup(
        Model(net, cross_entropy, sgd(0.1)),
        shuffled(*vectors()),
        scaler={"init_scale": 1.0, "growth_interval": STATIC},
    )


def _low_start() -> Setup:
    """A loss scale taken over from a run that collapsed: 2^-12, to grow every 2000 steps."""
    return Setup(
        Model(Recurrent(), cross_entropy, adamw(3e-3)), text(), scaler={"init_scale": 2.0**-12}
    )


def _grows_each_step() -> Setup:
    """A growth interval of 2: every third step overflows and is skipped."""
    return Setup(
        Model(convnet(), cross_entropy, adamw()),
        shuffled(*images()),
        scaler={"init_scale": 2.0**22, "growth_interval": 2},
    )


def _pascals() -> Setup:
    """A summed squared error in units so large that its gradient leaves FP16 at any scale ≥ 1."""
    x, y = regression()
    net = nn.Sequential(mlp(64, 64, last=8), Times(1e5))

    def summed(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.float() - targets).square().sum()

    return Setup(Model(net, summed, adamw()), shuffled(x, 1e5 * y))


def _adam_in_fp16() -> Setup:
    """Weights and Adam's state in FP16, where its eps of 1e-8 is 0."""
    return Setup(Model(mlp(64, 64), cross_entropy, adamw()), shuffled(*vectors()))


def _sgd_in_fp16() -> Setup:
    """FP16 weights and a learning rate that moves them by less than they resolve."""
    return Setup(Model(mlp(64, 64), cross_entropy, sgd(3e-4)), shuffled(*vectors()))


FAILING_FP16 = (
    Case(
        "fp16-segmentation",
        "static loss scale of 2^-9",
        ("gradient-underflow",),
        "16-mixed",
        80,
        _segmentation,
    ),
    Case(
        "fp16-small-units",
        "loss scale 1, loss of 1e-9",
        ("layer-flushed",),
        "16-mixed",
        80,
        _small_units,
    ),
    Case(
        "fp16-deep-sigmoids",
        "twelve sigmoids, static loss scale of 1",
        ("layer-flushed",),
        "16-mixed",
        80,
        _deep_sigmoids,
    ),
    Case(
        "fp16-low-start",
        "loss scale resumed at 2^-12",
        ("gradient-underflow", "loss-scale-too-low"),
        "16-mixed",
        120,
        _low_start,
    ),
    Case(
        "fp16-hasty-growth",
        "growth_interval=2",
        ("persistent-skips",),
        "16-mixed",
        120,
        _grows_each_step,
    ),
    Case(
        "fp16-pascals", "loss of 1e12", ("loss-scale-collapse-overflow",), "16-mixed", 80, _pascals
    ),
    Case("fp16-true-adam", "eps=1e-8 in FP16", ("eps-zero",), "16-true", 40, _adam_in_fp16),
    Case(
        "fp16-true-sgd",
        "lr=3e-4 on FP16 weights",
        ("lost-updates", "learning-rate-below-resolution"),
        "16-true",
        80,
        _sgd_in_fp16,
    ),
)
