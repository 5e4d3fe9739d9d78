"""The capsule: what it takes to run a failed step again, kept beside the record."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from numwatch.record.capsule_content import flaw_of
from numwatch.record.capsule_state import UnsafeStateError, load_state
from numwatch.record.errors import RecordError
from numwatch.record.files import MIB, is_own_folder, read_at_most
from numwatch.record.run import Run, open_run

CAPSULE_FOLDER = "capsule"
STATE, FACTS = "state.pt", "capsule.json"
GIGABYTE = 1e9
LARGEST_FACTS = 16 * MIB

_LARGE = ("optimizers", "module")
"""Parts of the state that are left out, in this order, until the rest is small enough."""


@dataclass(frozen=True)
class Capsule:
    """A failed step.

    Attributes:
        path: The capsule's folder.
        facts: What is known of the step: `step`, `epoch`, `batch_index`, `reason` ("loss",
            "gradient", "collapse", "critical", "exception"), `precision`, `autocast` and
            `default_dtype`, `loss`, `gradient_norm` and `loss_scale` as `float.hex` (None where not
            known), `micro_batches` of the step, `exception`, `origin`, `notes`, and `scalars` of
            the last steps.
        state: `batch`, `random` (generators), `module` and `optimizers` (state dictionaries),
            `scaler`, `buffers` that change and no state dictionary holds; parts that could not be
            kept are missing, and a note says why.
    """

    path: Path
    facts: dict[str, Any]
    state: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """What could not be kept as it was, a sentence each."""
        return list(self.facts.get("notes", []))

    def number(self, name: str) -> float | None:
        """Returns a number of the facts that is kept as `float.hex`."""
        text = self.facts.get(name)
        return None if text is None else float.fromhex(text)


def load_capsule(run: Run | str | os.PathLike[str]) -> Capsule:
    """Loads the capsule of a run that failed; its tensors come to the CPU.

    Args:
        run: The run, or its directory: see `open_run`.

    Raises:
        RecordError: The run has no capsule, or it can't be read.
    """
    record = run if isinstance(run, Run) else open_run(run)
    path = record.path / CAPSULE_FOLDER
    if not is_own_folder(path):
        raise RecordError(
            f"no capsule in {record.path}: one is kept of the first step that fails, unless "
            "capsule_gb=0"
        )
    try:
        facts = json.loads(read_at_most(path / FACTS, LARGEST_FACTS))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"the capsule in {path} can't be read: {error}") from error
    try:
        state = load_state(path / STATE)
    except FileNotFoundError as error:
        raise RecordError(f"the capsule in {path} can't be read: no {STATE}") from error
    except (OSError, UnsafeStateError) as error:
        raise RecordError(f"the capsule in {path} can't be read: {STATE}: {error}") from error
    except Exception as error:
        # torch's own text advises to load it without care.
        raise RecordError(f"the capsule in {path} can't be read: {STATE} is damaged") from error
    flaw = flaw_of(facts, state)
    if flaw is not None:
        raise RecordError(f"the capsule in {path} can't be read: {flaw}")
    return Capsule(path, facts, state)


def write_capsule(
    directory: Path, state: Mapping[str, Any], facts: Mapping[str, Any], limit: float
) -> bool:
    """Writes a capsule whole, unless there is one: the first failure is the one to look into.

    Args:
        directory: The record's folder.
        state: See `Capsule.state`.
        facts: See `Capsule.facts`.
        limit: Bytes of the state at most; what is larger is left out, and a note says so.

    Returns:
        Whether it was written.

    Raises:
        RecordError: It can't be written.
    """
    folder = directory / CAPSULE_FOLDER
    if folder.exists():
        return False
    notes = list(facts.get("notes", []))
    kept = {name: _kept(value, name, notes) for name, value in state.items()}
    _fit(kept, limit, notes)
    temporary = directory / f".{CAPSULE_FOLDER}-{os.getpid()}"
    try:
        if is_own_folder(temporary):  # of a killed process with this one's id
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        temporary.mkdir()
        torch.save(kept, temporary / STATE)
        text = json.dumps(_as_json({**facts, "notes": notes}), indent=2, allow_nan=False)
        (temporary / FACTS).write_text(text + "\n", encoding="utf-8")
        temporary.rename(folder)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise RecordError(f"can't write the capsule in {directory}: {error}") from error
    return True


def hex_of(value: float | None) -> str | None:
    """Returns a number bit for bit: "0x1.8p+0", "inf", "nan"."""
    return None if value is None else value.hex()


def _fit(state: dict[str, Any], limit: float, notes: list[str]) -> None:
    for name in (*_LARGE, *(name for name in state if name not in _LARGE)):
        size = _bytes(state)
        if size <= limit:
            return
        if name in state:
            del state[name]
            notes.append(
                f"{name} not kept: with it the capsule takes {size / GIGABYTE:.3g} GB, the limit "
                f"is capsule_gb={limit / GIGABYTE:g}"
            )


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


class _NotPlain(Exception):  # noqa: N818  # an answer, not an error
    """Something that can't be loaded with `weights_only=True`."""


def _kept(value: Any, name: str, notes: list[str]) -> Any:
    """Returns a part of the state in plain containers, without what does not fit in any."""
    if not isinstance(value, Mapping) or name == "batch":
        try:
            return _plain(value, name)
        except _NotPlain as found:
            notes.append(f"{found} can not be kept")
            return None
    return {key: _kept(one, f"{name}[{key!r}]", notes) for key, one in value.items()}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        if type(value.data) is not Tensor:
            raise _NotPlain(f"{name}, a {type(value).__name__},")
        # A view would take along all of the memory it shows a part of.
        tensor = value.detach()
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if type(value) in (list, tuple):
        return type(value)(_plain(one, f"{name}[{i}]") for i, one in enumerate(value))
    if isinstance(value, Mapping) and type(value).__name__ in ("dict", "OrderedDict"):
        return {key: _plain(one, f"{name}[{key!r}]") for key, one in value.items()}
    raise _NotPlain(f"{name}, a {type(value).__name__},")


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return value.hex()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
