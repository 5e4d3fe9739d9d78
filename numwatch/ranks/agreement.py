"""One order of keys for all ranks, and who speaks for what all of them hold."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from numwatch.ranks.group import Group
from numwatch.ranks.table import Table
from numwatch.snapshot import REDUCED_ROLE, REPLICATED, SlotInfo, role_of

REPLICAS = "replicas"
"""The table in which every rank speaks of what it holds, be it the same or not."""


class Agreement:
    """What the ranks have agreed on, table by table.

    A pipeline's ranks hold different modules, and some modules are called on some ranks alone: the
    ranks' keys are united. What several ranks hold, such as DDP's weights or a shard in a mesh of
    two dimensions, counts once: on the first rank that has it.

    Attributes:
        infos: What is known of each slot, on this rank or, where it is not there, on another.
        apart: Weights of one name that were found to differ between ranks.
        elsewhere: Gradients of whole parameters that rank 0 has not: a pipeline's later stages.
    """

    def __init__(self) -> None:
        self._own: dict[str, dict[str, str | None]] = {}
        self._agreed: dict[str, list[str]] = {}
        self._places: dict[str, dict[str, int]] = {}
        self.infos: dict[str, SlotInfo] = {}
        self.apart: list[str] = []
        self.elsewhere: frozenset[str] = frozenset()
        self._told: Sequence[SlotInfo] = ()
        self._slots: tuple[SlotInfo, ...] = ()
        self.changed = False

    @property
    def slots(self) -> tuple[SlotInfo, ...]:
        """All slots; the same object until something new is learnt."""
        return self._slots

    def learn(self, tables: Mapping[str, Table], slots: Sequence[SlotInfo]) -> None:
        """Takes note of what this rank has; `changed` where the others do not know of all."""
        if slots is not self._told:
            self._told = slots
            for slot in slots:
                if slot.dtype or slot.slot not in self.infos:
                    self.infos[slot.slot] = slot
            self._slots = tuple(self.infos.values())
        for name, table in tables.items():
            own = self._own.setdefault(name, {})
            for key in table.keys:
                if key not in own:
                    info = self.infos.get(key) or self.infos.get(key.rpartition(" ")[0])
                    own[key] = None if info is None or name == REPLICAS else _part_of(info)
                    self.changed = True

    def keys(self, name: str) -> list[str]:
        """Returns the keys of all ranks."""
        return self._agreed.get(name, [])

    def places(self, name: str, keys: Sequence[str]) -> list[int]:
        """Returns where each key stands among those of all ranks, -1 where another speaks of it."""
        places = self._places.get(name, {})
        return [places.get(key, -1) for key in keys]

    def exchange(self, group: Group) -> None:
        """Unites the keys of all ranks; every rank must be here."""
        content = self._own
        digest = hashlib.sha256(json.dumps(content).encode()).digest()
        digests = group.exchange(digest)
        mine: bytes = b""
        if group.rank == 0 or digest != digests[0]:  # the same as rank 0's are not sent again
            slots = [asdict(info) for info in self.infos.values() if info.dtype is not None]
            mine = zlib.compress(json.dumps({"keys": content, "slots": slots}).encode())
        blobs = group.exchange(mine)
        told = [json.loads(zlib.decompress(blob or blobs[0])) for blob in blobs]
        self._unite([each["keys"] for each in told], group.rank)
        for each in told:
            for slot in each["slots"]:
                known = self.infos.get(slot["slot"])
                if known is None or known.dtype is None:
                    shape = tuple(slot["shape"])  # JSON knows lists alone
                    self.infos[slot["slot"]] = SlotInfo(**{**slot, "shape": shape})
        self._slots = tuple(self.infos.values())
        self.changed = False

    def _unite(self, tables_of_ranks: Sequence[Mapping[str, Any]], rank: int) -> None:
        for name in {name: None for tables in tables_of_ranks for name in tables}:
            first: dict[tuple[str, str | None], int] = {}
            for teller, tables in enumerate(tables_of_ranks):
                for key, part in tables.get(name, {}).items():
                    first.setdefault((key, part), teller)
            agreed = self._agreed[name] = list(dict.fromkeys(key for key, _ in first))
            if name == "tensors":
                whole = {key: teller for (key, part), teller in first.items() if part == REPLICATED}
                self.elsewhere = frozenset(
                    key for key, teller in whole.items() if teller and role_of(key) == REDUCED_ROLE
                )
            own = self._own.get(name, {})
            self._places[name] = {
                key: place
                for place, key in enumerate(agreed)
                if key in own and (own[key] is None or first[key, own[key]] == rank)
            }


def _part_of(info: SlotInfo) -> str | None:
    """Returns what of a slot's tensor ranks may hold in common; None where each has its own."""
    return REPLICATED if info.placement == REPLICATED else info.shard
