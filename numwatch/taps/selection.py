"""Which modules are watched, in which roles."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from numwatch.errors import near
from numwatch.snapshot import ROLES, UPDATE_ROLE, SlotInfo
from numwatch.taps.hooks import takes_hooks

PARAMETER_ROLES = ("weight", "grad_weight")
_MATRIX, _STACK = 2, 3

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

_GEMMS = (
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.modules.conv._ConvNd,  # noqa: SLF001  # the common base of all convolutions
)
# GEMM modules of libraries that do not derive from torch's own.
_GEMM_NAMES = frozenset({"Conv1D", "LayerNormLinear", "GroupedLinear"})

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""One operation on several weights: no single one, and no GEMM of its own to plan for."""
_RECURRENT_ROLES = ("input", "output", "grad_output")

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._NormBase,  # noqa: SLF001  # the common base of batch and instance norms
)


_GRADIENTS = ("grad_output", "grad_input")


@dataclass(frozen=True, eq=False)
class Tap:
    """A watched module, with the slot index of each role watched on it.

    Attributes:
        module: The module.
        path: Its path in the unwrapped model.
        gemm: Whether it multiplies matrices, which autocast does in its dtype.
        slots: Slot index by role.
        parameter: Name of the one parameter it is about, of a module with stacks of matrices; its
            path then ends in it. None for the module itself.
    """

    module: nn.Module
    path: str
    gemm: bool
    slots: dict[str, int] = field(default_factory=dict)
    parameter: str | None = None

    @property
    def weight(self) -> nn.Parameter | None:
        """The parameter that its `weight` role is about, as it is now; None without one."""
        return weight_of(self.module, self.parameter)

    def find_weight(self) -> nn.Parameter | None:
        """Returns `weight`, for who asks later."""
        return self.weight

    @property
    def aliases_input(self) -> bool:
        """Whether `grad_input` is seen on a view of the input made for this module alone."""
        several = isinstance(self.module, (nn.MultiheadAttention, nn.Bilinear))
        return self.gemm and not several and "grad_input" in self.slots


def select(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> tuple[list[Tap], list[SlotInfo]]:
    """Chooses the slots of a model.

    By default every GEMM module (`Linear`, convolutions, their float8 kin, attention
    projections, and any with a matrix of its own called `weight`) in all roles, inputs and outputs
    of recurrent layers with the outputs' gradients, and the outputs of embeddings and norms. Of a
    module whose parameters are stacks of matrices (experts in one parameter) each stack and its
    gradient by the parameter's path, and what the module takes and gives.

    Args:
        model: The model; its root module itself is never watched.
        include: Globs that replace the default: `blocks.*` takes every role of the modules that
            match, `blocks.*:grad_output` one role.
        exclude: Globs of the same form, taken away afterwards.

    Returns:
        The modules to tap, and the slots in the order of their indices.

    Warns:
        UserWarning: A glob matches nothing; near names are given.
    """
    include_globs = _globs(include, "include")
    exclude_globs = _globs(exclude, "exclude")
    taps: list[Tap] = []
    slots: list[SlotInfo] = []
    owned: set[tuple[int, str]] = set()
    names: set[str] = set()
    places = list(_places(model))
    for path, module, parameter, by_default in places:
        multiplies = is_gemm(module) or isinstance(module, _RECURRENT)
        tap = Tap(module, path, parameter is not None or multiplies, parameter=parameter)
        weight = tap.weight
        for role in ROLES if parameter is None and takes_hooks(module) else PARAMETER_ROLES:
            wanted = role in by_default if include is None else _matches(include_globs, path, role)
            if not (path and wanted) or _matches(exclude_globs, path, role):
                continue
            if f"{path}:{role}" in names:
                continue  # a wrapper and the module it wraps share a path
            if role in PARAMETER_ROLES:
                if weight is None or (id(weight), role) in owned:
                    continue  # a shared weight is watched where it is met first
                owned.add((id(weight), role))
            names.add(f"{path}:{role}")
            tap.slots[role] = len(slots)
            slots.append(SlotInfo(f"{path}:{role}", path, role, type(module).__name__))
        if tap.slots:
            taps.append(tap)
    for name, _ in model.named_parameters():
        _matches(include_globs + exclude_globs, clean_path(name), UPDATE_ROLE)
    _warn_of_idle(include_globs + exclude_globs, [path for path, *_ in places if path])
    if not slots and include is None:
        warnings.warn(
            "numwatch: nothing is watched: the model has no GEMM module, recurrent layer, "
            "embedding or norm below its root that include and exclude leave",
            UserWarning,
            stacklevel=3,
        )
    return taps, slots


def is_update_wanted(
    name: str, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> bool:
    """Whether the updates of the parameter `name` are watched, by default all are.

    Args:
        name: Its path in the unwrapped model.
        include: The globs of `select`; here they match the parameter's module or its own path, and
            the role `update`.
        exclude: Likewise.
    """

    def matched(globs: Sequence[_Glob]) -> bool:
        owner = name.rpartition(".")[0]
        return any(_matches(globs, path, UPDATE_ROLE) for path in (owner, name) if path)

    wanted = include is None or matched(_globs(include, "include"))
    return wanted and not matched(_globs(exclude, "exclude"))


def clean_path(path: str) -> str:
    """Returns a module path without what compile, FSDP and checkpoint wrappers add to it."""
    return ".".join(name for name in path.split(".") if name not in _WRAPPERS)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None, Sequence[str]]]:
    """Yields path, module, parameter and default roles of all that can be watched."""
    for wrapped_path, module in model.named_modules():
        path = clean_path(wrapped_path)
        stacks = stacks_of(module) if path else ()
        roles = _default_roles(module)
        around = ("input", "output", *_GRADIENTS) if stacks else ()
        yield path, module, None, roles or around
        for name in stacks:
            yield f"{path}.{name}", module, name, PARAMETER_ROLES


def is_gemm(module: nn.Module) -> bool:
    """Whether the module is a matrix product with weights: by class, by name, or by its weight."""
    if _is_known_gemm(module):
        return True
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    # A Linear of someone's own: the routers of experts, the heads of metric losses.
    is_matrix = weight is not None and _dimensions(weight) == _MATRIX
    looks_up = isinstance(module, _EMBEDDINGS) or type(module).__name__.endswith("Embedding")
    return is_matrix and not looks_up and not is_norm_or_embedding(module)


def _is_known_gemm(module: nn.Module) -> bool:
    return isinstance(module, _GEMMS) or type(module).__name__ in _GEMM_NAMES


def _default_roles(module: nn.Module) -> tuple[str, ...]:
    if is_gemm(module):
        return ROLES
    if isinstance(module, _RECURRENT):
        return _RECURRENT_ROLES
    return ("output",) if is_norm_or_embedding(module) else ()


def is_norm_or_embedding(module: nn.Module) -> bool:
    """Whether the module is an embedding or a norm, by class or by its library's naming."""
    name = type(module).__name__
    return isinstance(module, _EMBEDDINGS + _NORMS) or name.endswith(("LayerNorm", "RMSNorm"))


def stacks_of(module: nn.Module) -> tuple[str, ...]:
    """Returns the names of a module's own parameters that are stacks of matrices [n, out, in].

    A GEMM of someone's own may hold some beside its `weight`: experts and their router in one.
    """
    if _is_known_gemm(module) or is_norm_or_embedding(module):
        return ()
    if isinstance(module, ParametrizationList):
        return ()
    own = module.named_parameters(recurse=False)
    return tuple(name for name, parameter in own if _dimensions(parameter) == _STACK)


def inner_products(taps: Iterable[Tap]) -> str | None:
    """Returns which modules multiply by stacks of matrices where no hook is; None without any."""
    owners = list(
        dict.fromkeys(tap.path.rpartition(".")[0] for tap in taps if tap.parameter is not None)
    )
    if not owners:
        return None
    more = f" and {len(owners) - 1} more" if len(owners) > 1 else ""
    return f"products inside {owners[0]}{more}, whose weights are stacked in one parameter"


def _dimensions(parameter: nn.Parameter) -> int:
    """Returns how many dimensions a parameter has; 0 where one is of size 1 or not known yet."""
    if is_lazy(parameter) or not parameter.is_floating_point() or 1 in parameter.shape:
        return 0
    return parameter.ndim


def weight_of(module: nn.Module, parameter: str | None = None) -> nn.Parameter | None:
    """Returns the parameter that a module's `weight` role is about, or None.

    Args:
        module: The module.
        parameter: Its name; None for the module's own weight.
    """
    # Never by getattr: of a parametrized weight that would run the parametrization, which may
    # draw random numbers or take a step of a power iteration.
    own = module._parameters  # noqa: SLF001  # `named_parameters` takes ten times as long
    for name in ("weight", "in_proj_weight") if parameter is None else (parameter,):
        if name in own and own[name] is not None:
            return own[name]
    if parameter is not None:
        return None
    parametrizations = dict(module.named_children()).get("parametrizations")
    if parametrizations is None:
        return None
    return dict(parametrizations.named_parameters()).get("weight.original")


@dataclass
class _Glob:
    text: str
    argument: str
    hit: bool = False

    def matches(self, path: str, role: str) -> bool:
        module_glob, _, role_glob = self.text.partition(":")
        matched = fnmatchcase(path, module_glob) and fnmatchcase(role, role_glob or "*")
        self.hit = self.hit or matched
        return matched


def _globs(texts: Sequence[str] | None, argument: str) -> list[_Glob]:
    if isinstance(texts, str):
        texts = [texts]
    return [_Glob(text, argument) for text in texts or ()]


def _matches(globs: Iterable[_Glob], path: str, role: str) -> bool:
    matched = [glob.matches(path, role) for glob in globs]  # every glob must learn of its hit
    return any(matched)


def _warn_of_idle(globs: Sequence[_Glob], paths: Sequence[str]) -> None:
    for glob in globs:
        if not glob.hit:
            warnings.warn(_no_match(glob, paths), UserWarning, stacklevel=4)


def _no_match(glob: _Glob, paths: Sequence[str]) -> str:
    module_glob, _, role_glob = glob.text.partition(":")
    roles = (*ROLES, UPDATE_ROLE)
    if role_glob and not any(fnmatchcase(role, role_glob) for role in roles):
        hint = near(role_glob, roles) or f"; roles are {', '.join(roles)}"
    else:
        hint = near(module_glob, paths)
    return f"numwatch: {glob.argument}={glob.text!r} matches no module and role{hint}"
