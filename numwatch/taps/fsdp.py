"""FSDP2's own account of its parameters: what stands in a module may be a gathered copy."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from numwatch.taps.selection import Tap

AtRest = Mapping[tuple[int, str], Tensor]
"""This rank's shard of each parameter that FSDP2 looks after, by its module's id and its name."""

_NAMES = ("weight", "in_proj_weight")


def shards_of(model: nn.Module) -> AtRest:
    """Returns the shards of a model's parameters, as the optimizer has them; empty without FSDP2.

    After a forward without gradients FSDP2 leaves the root's whole weights in their place.
    """
    return {place: account.sharded_param for place, account in _accounts(model).items()}


def shards_with_owners(model: nn.Module) -> Iterator[tuple[str, Tensor, object]]:
    """Yields each with the name its parameter has in the model, and FSDP2's account that has it."""
    accounts = _accounts(model)
    for path, module in model.named_modules() if accounts else ():
        for name in dict(module.named_parameters(recurse=False)):
            account = accounts.get((id(module), name))
            if account is not None:
                yield f"{path}.{name}".removeprefix("."), account.sharded_param, account


def weight_at_rest(tap: Tap, at_rest: AtRest) -> Tensor | None:
    """Returns the weight a tap is about as the optimizer has it; None without one."""
    names = (tap.parameter,) if tap.parameter else _NAMES
    for name in names if at_rest else ():
        shard = at_rest.get((id(tap.module), name))
        if shard is not None:
            return shard
    return tap.weight


def _accounts(model: nn.Module) -> dict[tuple[int, str], Any]:
    """Returns what FSDP2 knows of each parameter, by its module's id and its name."""
    return {
        (id(module), name): one
        for one in _parameters(model)
        for module, name in _places(one._module_info)  # noqa: SLF001  # FSDP2 has no public account
    }


def _parameters(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if not hasattr(type(module), "_get_fsdp_state"):
            continue
        state: Any = module._get_fsdp_state()  # type: ignore[operator]  # noqa: SLF001
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # noqa: SLF001
        for group in groups:
            yield from () if group is None else group.fsdp_params


def _places(info: Any) -> Iterator[tuple[nn.Module, str]]:
    yield info.module, info.param_name
    yield from zip(info.shared_modules, info.shared_param_names, strict=True)
