"""Which modules are watched, in which roles."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from numwatch.errors import near
from numwatch.snapshot import ROLES, UPDATE_ROLE, SlotInfo

PARAMETER_ROLES = ("weight", "grad_weight")

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

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


@dataclass(frozen=True, eq=False)
class Tap:
    """A watched module, with the slot index of each role watched on it.

    Attributes:
        module: The module.
        path: Its path in the unwrapped model.
        slots: Slot index by role.
        gemm: Whether it multiplies matrices, which autocast does in its dtype.
    """

    module: nn.Module
    path: str
    gemm: bool
    slots: dict[str, int] = field(default_factory=dict)

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
    projections) in all roles, inputs and outputs of recurrent layers with the outputs' gradients,
    and the outputs of embeddings and norms.

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
    modules = list(model.named_modules())
    for wrapped_path, module in modules:
        path = clean_path(wrapped_path)
        tap = Tap(module, path, is_gemm(module) or isinstance(module, _RECURRENT))
        weight = weight_of(module)
        by_default = _default_roles(module)
        for role in ROLES:
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
    _warn_of_idle(include_globs + exclude_globs, [clean_path(path) for path, _ in modules if path])
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
    for wrapper in _WRAPPERS:
        path = path.replace(wrapper, "").removesuffix(wrapper[:-1]).removesuffix(".")
    return path


def is_gemm(module: nn.Module) -> bool:
    """Whether the module is a matrix product with weights."""
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


def weight_of(module: nn.Module) -> nn.Parameter | None:
    """Returns the parameter that a module's `weight` role is about, or None."""
    # Never by getattr: of a parametrized weight that would run the parametrization, which may
    # draw random numbers or take a step of a power iteration.
    own = dict(module.named_parameters(recurse=False))
    for name in ("weight", "in_proj_weight"):
        if name in own:
            return own[name]
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
