"""`state.pt` of a capsule, read so that a stranger's runs nothing and takes no more than it is."""

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from numwatch.record.files import MIB, check_own

_LARGEST_PICKLE = 64 * MIB
_NAMES = re.compile(
    r"collections OrderedDict|_codecs encode|torch [a-z]\w*|torch \w+Storage"
    r"|torch\.storage UntypedStorage|torch\._utils _rebuild_\w+|torch (Size|device)"
    r"|torch\.serialization _get_layout"
)
"""What the pickle of plain containers and tensors names. `weights_only` lets a few more through,
of which some allocate as much as a number says."""
_DEEPEST = 100
_MOST = 3_000_000
_STRETCH = 1000
"""So many times their file's size tensors may have in all, where they repeat what they hold."""


class UnsafeStateError(ValueError):
    """The state is none that numwatch writes; says why."""


def load_state(path: Path) -> Any:
    """Returns the content of a `state.pt`; its tensors come to the CPU.

    Raises:
        UnsafeStateError: It is no archive as numwatch writes it, or would unfold into more.
        OSError: It can't be read, or is no plain file.
        Exception: Whatever torch raises of a damaged one.
    """
    check_own(path)
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        _check_archive(archive, size)
    with warnings.catch_warnings():
        # From torch 2.14 on it says that it looks whether sparse tensors are sound: so it shall.
        warnings.filterwarnings("ignore", "Validating sparse tensor invariants")
        state = torch.load(path, map_location="cpu", weights_only=True)
    _check_size(state, size)
    return state


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UnsafeStateError("its archive is compressed")
    if sum(member.file_size for member in members) > size:
        raise UnsafeStateError("its archive unfolds into more than it is")
    for member in members:
        if member.filename.endswith(".pkl"):
            if member.file_size > _LARGEST_PICKLE:
                raise UnsafeStateError(f"its pickle has more than {_LARGEST_PICKLE // MIB} MiB")
            _check_names(archive.read(member))


def _check_names(content: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not _NAMES.fullmatch(
            str(argument)
        ):
            raise UnsafeStateError(f"it names {argument}, which numwatch never keeps")


def _check_size(state: Any, size: int) -> None:
    """Refuses containers within themselves, far too many of them, and tensors without end."""
    left, count = _STRETCH * size, 0
    waiting = [(state, 0)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if isinstance(value, Tensor):
            left -= value.numel() * value.element_size()
            if value.device.type != "cpu":
                raise UnsafeStateError(f"it holds a tensor on {value.device}")
        elif isinstance(value, (Mapping, list, tuple)):
            parts = value.values() if isinstance(value, Mapping) else value
            waiting += [(each, depth + 1) for each in parts]
        if depth > _DEEPEST:
            raise UnsafeStateError("it is nested too deep")
        if count > _MOST or left < 0:
            raise UnsafeStateError("it unfolds into more than it is")
