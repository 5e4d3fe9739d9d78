"""Which tensors several processes share between them, and which part of one each answers for."""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from numwatch.snapshot import REPLICATED, SHARDED


def of_many_ranks() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def placement_of(parameter: Tensor) -> str | None:
    """Returns how a parameter is placed over the ranks, None where there is one rank alone.

    Between a step's forward and backward FSDP has whole weights in their place; asked for then, it
    says `REPLICATED`.
    """
    if not of_many_ranks():
        return None
    return SHARDED if is_sharded(parameter) else REPLICATED


def is_sharded(parameter: Tensor) -> bool:
    """Whether a rank holds a part of the parameter: of FSDP's either version, or a parallel plan.

    FSDP1 marks what it has flattened; the parameter is then a view of the rank's piece.
    """
    return is_dtensor(parameter) or bool(getattr(parameter, "_fsdp_flattened", False))


def weight_in_place(module: nn.Module, name: str | None = None) -> Tensor | None:
    """Returns what stands as a module's weight just now, parametrized ones left out.

    For the time of a forward FSDP puts a whole weight there, of version 1 a plain tensor.
    """
    own, name = module.__dict__, name or "weight"
    weight = own["_parameters"].get(name)
    return own.get(name) if weight is None else weight


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is a DTensor; importing that class takes a second, asking does not."""
    return hasattr(tensor, "_local_tensor") and hasattr(tensor, "placements")


def is_own(parameter: Tensor) -> bool:
    """Whether this rank answers for the parameter's gradient in a norm over all ranks."""
    if not of_many_ranks():
        return True
    if is_sharded(parameter):
        return counts_here(parameter) and _is_first_copy(parameter)
    return dist.get_rank() == 0


def shard_of(parameter: Tensor) -> str | None:
    """Returns which part of a sharded parameter this rank holds; None of others.

    Ranks that hold the same part, as in a mesh of more dimensions than it is spread over, say so
    alike.
    """
    if not (of_many_ranks() and is_sharded(parameter)):
        return None
    if not is_dtensor(parameter):
        return f"rank {dist.get_rank()}"
    spread: Any = parameter
    place = spread.device_mesh.get_coordinate() or ()
    ways = zip(place, spread.placements, strict=False)
    return ",".join(str(at) for at, how in ways if not how.is_replicate())


def _is_first_copy(parameter: Tensor) -> bool:
    """Whether this rank is the first in the mesh's dimensions that hold copies of a parameter."""
    if not is_dtensor(parameter):
        return True
    spread: Any = parameter
    mesh = spread.device_mesh
    whole = _root_of(mesh)
    place, own = whole.get_coordinate() or (), set(mesh.mesh_dim_names or ())
    others = (
        at for at, name in zip(place, whole.mesh_dim_names or (), strict=False) if name not in own
    )
    return not any(others)


def is_partial(gradient: Tensor) -> bool:
    """Whether a gradient is one of several ranks' summands that nobody has added up yet."""
    spread: Any = gradient
    return is_dtensor(gradient) and any(how.is_partial() for how in spread.placements)


def _root_of(mesh: Any) -> Any:
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()  # noqa: SLF001  # torch has no public way
    from torch.distributed import device_mesh  # before torch 2.7

    return device_mesh._mesh_resources.get_root_mesh(mesh)  # noqa: SLF001


def is_others_output(module: nn.Module, args: tuple[Any, ...], output: object) -> bool:
    """Whether an output that stands whole on several ranks is another's to count.

    A parallel plan makes plain tensors of its outputs: a row-wise Linear or embedding leaves the
    sum over ranks on each of them, a column-wise one its own columns. The sizes tell which.
    """
    weight = weight_in_place(module)
    if weight is None or not is_dtensor(weight) or not args or not is_dtensor(args[0]):
        return False
    if not isinstance(output, Tensor) or is_dtensor(output):
        return False
    rows, columns = weight.shape[0], weight.shape[-1]
    if isinstance(module, nn.Embedding):
        whole = args[0].numel() * columns
    elif isinstance(module, nn.Linear):
        whole = args[0].numel() // columns * rows
    else:
        return False
    return output.numel() == whole and any(args[0].device_mesh.get_coordinate() or ())


def alias_of(tensor: Tensor) -> Tensor | None:
    """Returns a view of a tensor that shares all with it; None where DTensor knows of no such."""
    try:
        return tensor[...]  # aten.alias, by the shortest way; `view_as` may change strides
    except NotImplementedError:  # torch 2.6
        return None


def local_part(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a DTensor, and any other tensor as it is; detached."""
    own: Tensor = tensor.detach()
    return own.to_local() if is_dtensor(own) else own  # type: ignore[attr-defined]


def counts_here(tensor: Tensor) -> bool:
    """Whether this rank's part of a tensor is to be counted.

    Of a DTensor that is replicated along a dimension of its mesh, the first rank there counts.
    """
    if not is_dtensor(tensor):
        return True
    spread: Any = tensor
    place = spread.device_mesh.get_coordinate()
    return place is not None and all(
        at == 0 for at, how in zip(place, spread.placements, strict=True) if how.is_replicate()
    )
