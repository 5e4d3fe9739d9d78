"""`Float8Training`: a model's Linears computed in float8, through torchao."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from pytorch_lightning.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]
from torch import nn

from numwatch.errors import NumwatchError, near
from numwatch.taps.float8 import is_float8_linear

from ._converting import ConvertingCallback
from ._torchao import compute_dtype, convert, scaled_mm_fault

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")

# Both sizes of a float8 GEMM's weight; Hopper's and Ada's requirement.
_MULTIPLE = 16


class Float8Training(ConvertingCallback):
    """Turns the eligible Linears of a model into torchao's `Float8Linear` for training.

    Eligible is an `nn.Linear` (no subclass: its forward would be lost) with both sizes a multiple
    of 16; on CUDA the tokens of a batch must come in multiples of 16 too (`drop_last=True`).
    Weights stay what and where they were, so optimizers and checkpoints do not change. Use it
    with bf16 precision. The model stays converted after the fit.

    The GEMMs run in `torch._scaled_mm` where the device can do the recipe, and are emulated in
    FP32 on the same float8 values where not; `emulated` and a log line say which.

    Args:
        recipe: `tensorwise` (one scale a tensor, E5M2 gradients), `rowwise` (a power-of-two scale
            a row, all E4M3) or `rowwise_with_gw_hp` (rowwise, weight gradients in high precision).
        include: Globs of module names to convert; all by default.
        exclude: Globs of module names to leave as they are.
        emulate: True always emulates, False never does; None chooses by the device.

    Attributes:
        converted: Names of the modules that were turned.
        emulated: Whether their GEMMs are emulated; None before the fit.

    Raises:
        NumwatchError: torchao is missing, the recipe or a glob is mistyped, no Linear is
            eligible, or `emulate=False` and the device can not run the recipe.
    """

    def __init__(
        self,
        recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] = "tensorwise",
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        emulate: bool | None = None,
    ) -> None:
        if recipe not in RECIPES:
            raise NumwatchError(
                f"Float8Training's recipe is one of {', '.join(RECIPES)}; "
                f"got {recipe!r}{near(recipe, RECIPES)}"
            )
        super().__init__(emulate)
        self.recipe = recipe
        self.include = include
        self.exclude = exclude

    def _convert(self, trainer: Any, model: nn.Module) -> None:
        linears = dict(_linears(model))
        chosen = choose(linears, self.include, self.exclude)
        todo = {name: linears[name] for name in chosen if not is_float8_linear(linears[name])}
        if not todo:  # a second fit
            turned: list[Any] = [linears[name] for name in chosen]
            self.emulated = any(module.config.emulate for module in turned)
            return
        device, dtype = trainer.strategy.root_device, compute_dtype(str(trainer.precision))
        config = _config(self.recipe, emulate=False)
        why_not = None if self.emulate else scaled_mm_fault(config, device, dtype)
        if why_not and self.emulate is False:
            raise NumwatchError(
                f"emulate=False, and {device} can not run the {self.recipe} recipe "
                f"in {dtype}: {why_not}; leave emulate=None"
            )
        self.emulated = bool(self.emulate or why_not)
        convert(model, todo.values(), _config(self.recipe, emulate=self.emulated))
        self.converted = tuple(todo)
        how = "emulated in FP32" if self.emulated else "in torch._scaled_mm"
        rank_zero_info(
            f"Float8Training: {len(todo)} of {len(linears)} Linear layers in float8 "
            f"({self.recipe}), GEMMs {how} on {device}{f' ({why_not})' if why_not else ''}"
        )


def choose(
    linears: dict[str, nn.Linear],
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[str]:
    """Returns the names of the Linears that float8 training converts.

    Raises:
        NumwatchError: A glob matches no Linear, or nothing is left.
    """
    for argument, globs in (("include", include), ("exclude", exclude)):
        for glob in globs or ():
            if not any(fnmatchcase(name, glob) for name in linears):
                raise NumwatchError(
                    f"Float8Training's {argument}={glob!r} matches no Linear{near(glob, linears)}"
                )
    chosen = [
        name
        for name, linear in linears.items()
        if linear.in_features % _MULTIPLE == 0
        and linear.out_features % _MULTIPLE == 0
        and (include is None or any(fnmatchcase(name, glob) for glob in include))
        and not any(fnmatchcase(name, glob) for glob in exclude or ())
    ]
    if not chosen:
        raise NumwatchError(
            f"Float8Training needs Linears with both sizes a multiple of {_MULTIPLE}; of the "
            f"model's {len(linears)} none such is left by include and exclude"
        )
    return chosen


def _config(recipe: str, *, emulate: bool) -> Any:
    from torchao.float8 import Float8LinearConfig

    config = Float8LinearConfig.from_recipe_name(recipe)
    return dataclasses.replace(config, emulate=emulate)


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yields plain Linears and those already converted, by name; the root has none."""
    for name, module in model.named_modules():
        plain = type(module) is nn.Linear
        if name and isinstance(module, nn.Linear) and (plain or is_float8_linear(module)):
            yield name, module
