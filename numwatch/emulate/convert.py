"""`emulate`: a model's planned Linears turned, and turned back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from numwatch.emulate.casts import cast_of
from numwatch.emulate.gemms import Rounding
from numwatch.emulate.linear import EmulatedLinear
from numwatch.emulate.state import Draws
from numwatch.errors import NumwatchError, near
from numwatch.plan.modules import check_modules
from numwatch.plan.types import ModulePlan, Plan
from numwatch.recipes.blockwise import NVFP4Scaling


class Emulation:
    """A model under a plan; as a context manager it removes itself on the way out.

    Attributes:
        modules: The emulated modules, by name.
    """

    def __init__(
        self,
        modules: Mapping[str, EmulatedLinear],
        before: list[Rounding | None],
        draws: Draws,
        handles: Sequence[RemovableHandle] = (),
    ) -> None:
        self.modules = dict(modules)
        self._handles = handles
        self._before = before
        self._draws = draws

    def remove(self) -> None:
        """Makes the modules what they were; a second time it does nothing."""
        for module, before in zip(self.modules.values(), self._before, strict=True):
            # An emulation below this one may have been removed first.
            if isinstance(module, EmulatedLinear) and before is not None:
                module.rounding = before
            elif isinstance(module, EmulatedLinear):
                turn_plain(module)
        for handle in self._handles:
            handle.remove()
        self.modules, self._before, self._handles = {}, [], ()

    def covers(self, model: nn.Module) -> bool:
        """Whether all of it is in force in a model."""
        present = {id(module) for module in model.modules()}
        return bool(self.modules) and all(
            id(module) in present and isinstance(module, EmulatedLinear)
            for module in self.modules.values()
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns what delayed scaling and stochastic rounding remember: tensors by plain names."""
        scales = {
            name: {role: keeper.state_dict() for role, keeper in module.rounding.keepers.items()}
            for name, module in self.modules.items()
        }
        return {"scales": scales, "draws": self._draws.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what another emulation's `state_dict` returned.

        Raises:
            NumwatchError: It is of other modules or other recipes.
        """
        for name, scales in state["scales"].items():
            module = self.modules.get(name)
            if module is None:
                raise NumwatchError(
                    f"the saved scales are of {name!r}, which the plan does not emulate"
                    f"{near(name, self.modules)}"
                )
            for role, kept in scales.items():
                if role in module.rounding.keepers:
                    module.rounding.keepers[role].load_state_dict(kept)
        self._draws.load_state_dict(state["draws"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def emulate(model: nn.Module, plan: Plan, *, seed: int = 0) -> Emulation:
    """Rounds every planned operand of every planned Linear through its format, in training.

    The modules are turned in place: parameters, their names, hooks and whoever holds the modules
    are left as they are. Products are taken in FP32 and leave in autocast's dtype, or else in that
    of the input; biases and operands without a plan stay in that. On devices that were allowed
    TF32 products (`torch.set_float32_matmul_precision`) the FP32 is theirs. Of several ranks each
    scales by its own amaxes, as torchao does.

    Args:
        model: The model, unwrapped; each planned module is an `nn.Linear` itself, no subclass, or
            was emulated before.
        plan: Which operands, by module.
        seed: Of stochastic rounding and of the signs of Hadamard transforms.

    Returns:
        What removes the emulation, and saves what it remembers.

    Raises:
        NumwatchError: The model lacks a planned module, or one is no such Linear, or the two
            operands of a weight gradient do not agree on the Hadamard transform. Nothing is turned
            then.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    check_modules(plan, modules)
    planned = [module for module in plan.modules if not module.kept]
    for module_plan in planned:
        _require_linear(module_plan.module, modules)
    draws = Draws(seed)
    roundings = [_rounding_of(module_plan, draws, seed) for module_plan in planned]
    turned: dict[str, EmulatedLinear] = {}
    before: list[Rounding | None] = []
    handles: list[RemovableHandle] = []
    for module_plan, rounding in zip(planned, roundings, strict=True):
        module: Any = modules[module_plan.module]
        before.append(module.rounding if isinstance(module, EmulatedLinear) else None)
        module.__class__ = EmulatedLinear
        module.rounding = rounding
        handles.append(module.register_forward_pre_hook(_called))
        turned[module_plan.module] = module
    return Emulation(turned, before, draws, handles)


def _called(_module: nn.Module, _args: Any) -> None:
    """A hook that does nothing: torch's fused encoder layers call a Linear that has one."""


def turn_plain(module: EmulatedLinear) -> None:
    """Makes an emulated Linear a plain one on the same parameters, in place."""
    del module.rounding
    plain: nn.Module = module
    plain.__class__ = nn.Linear


def _require_linear(name: str, modules: Mapping[str, nn.Module]) -> None:
    kind = type(modules[name])
    if kind in (nn.Linear, EmulatedLinear):
        return
    linears = [other for other, module in modules.items() if type(module) is nn.Linear]
    raise NumwatchError(
        f"the plan's {name!r} is a {kind.__name__}; only an nn.Linear itself is emulated"
        f"{near(name, linears)}"
    )


def _rounding_of(plan: ModulePlan, draws: Draws, seed: int) -> Rounding:
    casts = {role: cast_of(operand) for role, operand in plan.operands.items()}
    transformed = {
        role
        for role in ("input", "grad_output")
        if role in plan.operands
        and isinstance(plan.operands[role].recipe, NVFP4Scaling)
        and getattr(plan.operands[role].recipe, "hadamard", False)
    }
    if len(transformed) == 1:
        raise NumwatchError(
            f"{plan.module!r}: a Hadamard transform cancels only where both operands of the weight "
            f"gradient have it; the plan gives it to {transformed.pop()} alone"
        )
    return Rounding(casts, draws, seed if transformed else None)
