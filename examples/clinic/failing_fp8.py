"""FP8 runs whose scale is stale, or whose gradients need more range than E4M3 has."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .case import Case, Setup
from .data import FEATURES, regression, shuffled
from .models import Model, adamw, mean_square, mlp

_E4M3_MAX = 448.0


def _e4m3_gradients() -> Setup:
    """One sample in a batch that weighs 2^20 times the others, gradients in E4M3 per tensor."""
    x, y = regression()
    weights = torch.where(torch.rand(len(x), 1) < 1 / 32, 2.0**20, 1.0)
    net = in_float8(mlp(64, 64, 64, last=16))

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        target, weight = targets[:, :-1], targets[:, -1:]
        return (weight * (outputs[:, :8].float() - target).square()).mean()

    return Setup(
        Model(net, weighted, adamw()), shuffled(x, torch.cat([y, weights], dim=1), batch=64)
    )


def in_float8(net: nn.Module) -> nn.Module:
    """Returns a net with its Linears in torchao's float8, gradients in E4M3 per tensor."""
    from torchao.float8 import CastConfig, Float8LinearConfig, convert_to_float8_training

    e4m3 = CastConfig(target_dtype=torch.float8_e4m3fn)
    config = Float8LinearConfig(
        cast_config_grad_output=e4m3, cast_config_grad_output_for_grad_weight=e4m3, emulate=True
    )
    return convert_to_float8_training(net, config=config)


class ToE4M3(nn.Module):
    """Casts to E4M3 by a scale set once, from the first tensor it saw: [...] to float8 [...]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x * scale`, saturated."""
        fresh = _E4M3_MAX / x.abs().amax().float()
        self.scale.copy_(torch.where(self.scale > 0, self.scale, fresh))
        return (x * self.scale).clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn)


class StaleLinear(nn.Linear):
    """A Linear whose input passes through E4M3 by a scale that is never renewed."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.cast = ToE4M3()

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies; the gradient passes straight through the cast."""
        with torch.no_grad():
            low = self.cast(x).to(x.dtype) / self.cast.scale
        return F.linear(x + (low - x).detach(), self.weight, self.bias)


def _stale_scale() -> Setup:
    """Activations that grow a hundredfold under the scale of the first step."""
    x, y = regression()
    net = nn.Sequential(
        nn.Linear(FEATURES, 64), nn.ReLU(), StaleLinear(64, 64), nn.ReLU(), StaleLinear(64, 8)
    )
    monitor: dict[str, Any] = {"include": ["net.*"]}
    return Setup(Model(net, mean_square, adamw(1e-2)), shuffled(x, 100.0 * y), monitor=monitor)


FAILING_FP8 = (
    Case(
        "fp8-e4m3-gradients",
        "gradients of 20 binades in E4M3",
        ("fp8-flushing",),
        "bf16-mixed",
        80,
        _e4m3_gradients,
    ),
    Case(
        "fp8-stale-scale", "a scale set once", ("fp8-saturation",), "bf16-mixed", 120, _stale_scale
    ),
)
