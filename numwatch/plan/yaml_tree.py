"""YAML text as a tree of plain values, each of which knows where it stands.

Stricter than YAML: keys are text exactly as written (so a module called `0` or `yes` needs no
quotes), no key comes twice, nothing is tagged, and there are no aliases, so that a file can't
unfold into more than what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]

from numwatch.errors import NumwatchError, near

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
_RESOLVER = yaml.resolver.Resolver()
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_READERS: Mapping[str, Callable[[yaml.ScalarNode], object]] = {
    "int": _CONSTRUCTOR.construct_yaml_int,
    "float": _CONSTRUCTOR.construct_yaml_float,
    "bool": _CONSTRUCTOR.construct_yaml_bool,
    "null": _CONSTRUCTOR.construct_yaml_null,
}
_DEEPEST = 50
"""Levels of a file; more than a plan's source may have when it is written."""
_LONGEST_NUMBER = 3000
"""Characters: all of YAML's notations stay below the digits that Python writes, and in no time."""
_KINDS = {"str": "text", "dict": "a mapping", "list": "a list", "NoneType": "nothing"}
_KINDS |= {"int": "a number", "float": "a number", "bool": "a switch"}


class PlacedError(NumwatchError):
    """An error in a file, whose text says where."""


class Entry:
    """A value of the file.

    Attributes:
        value: Text, a number, a switch or None; or entries, in a list or by name in a mapping.
        line: Line of the file, from 1.
    """

    __slots__ = ("line", "name", "parent", "value")

    def __init__(self, name: str, line: int, parent: Entry | None = None) -> None:
        self.name = name
        self.line = line
        self.parent = parent
        self.value: Any = None

    def wrong(self, text: str) -> NoReturn:
        """Raises a PlacedError."""
        names: list[str] = []
        entry: Entry = self
        while entry.parent is not None:
            names.append(entry.name)
            entry = entry.parent
        place = ", ".join([f"line {self.line}", *([" / ".join(reversed(names))] if names else [])])
        raise PlacedError(f"{entry.name}, {place}: {text}")

    def mapping(self, known: Iterable[str] | None = None) -> Mapping[str, Entry]:
        """Returns the entries of a mapping; nothing at all counts as an empty one.

        Args:
            known: The keys that are allowed; None for any.
        """
        if self.value is None:
            return {}
        entries = self.value
        if not isinstance(entries, dict):
            self.wrong(f"here a mapping (key: value) is needed; got {self.kind}")
        for key, entry in entries.items():
            if known is not None and key not in known:
                entry.wrong(
                    f"unknown key {key!r}: allowed are {', '.join(known)}{near(key, known)}"
                )
        return entries

    def text(self) -> str:
        """Returns a text."""
        if not isinstance(self.value, str):
            hint = "" if isinstance(self.value, dict | list) else ": put it in quotes"
            self.wrong(f"here text is needed; got {self.kind}{hint}")
        return self.value

    def number(self) -> float:
        """Returns a number as a float."""
        value = self.value
        if isinstance(value, str):  # YAML 1.1 takes 1e5 for text, YAML 1.2 and people for a number
            try:
                return float(value)
            except ValueError:
                pass
        elif isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                self.wrong(f"here a number is needed; got one of {len(str(value))} digits")
        return self.wrong(f"here a number is needed; got {self.kind}")

    def whole(self) -> int:
        """Returns a whole number."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.wrong(f"here a whole number is needed; got {self.kind}")
        return self.value

    def plain(self) -> Any:
        """Returns the value without its places."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    @property
    def kind(self) -> str:
        """What the value is, in words."""
        kind = _KINDS[type(self.value).__name__]
        return kind if isinstance(self.value, dict | list | None) else f"{kind}, {self.value!r:.60}"


def parse_tree(text: str, name: str) -> Entry:
    """Returns the root of the tree.

    Args:
        text: One YAML document.
        name: Of the file, for errors.

    Raises:
        NumwatchError: The text is no YAML, or not of the strict kind above; says where.
    """
    root = Entry(name, 1)
    try:
        # Events, not nodes: nothing is unfolded, and no second tree is built.
        events = yaml.parse(text, Loader=_LOADER)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root.value is not None:
                    root.wrong("a plan is one YAML document; got several (---)")
                _fill(root, next(events), events, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise NumwatchError(f"{name}{place}: no valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise NumwatchError(f"{name}: no valid YAML: {' '.join(str(error).split())}") from None
    return root


def _fill(entry: Entry, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> None:
    if event.anchor is not None:
        entry.wrong("anchors and aliases (&name, *name) are not allowed in a plan: write it out")
    if depth > _DEEPEST:
        entry.wrong("this is nested too deep for a plan")
    if isinstance(event, yaml.ScalarEvent):
        entry.value = _scalar(entry, event)
    elif event.tag not in (None, "!"):
        entry.wrong(f"the tag {event.tag} is not allowed in a plan")
    elif isinstance(event, yaml.MappingStartEvent):
        entry.value = {}
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent) or key.anchor is not None:
                entry.wrong("a key is text; got a list, a mapping or an alias")
            below = Entry(key.value, key.start_mark.line + 1, entry)
            if below.name in entry.value:
                below.wrong(f"the key {below.name!r} comes twice: remove one")
            entry.value[below.name] = below
            _fill(below, next(events), events, depth + 1)
    else:
        entry.value = []
        while not isinstance(child := next(events), yaml.SequenceEndEvent):
            below = Entry(f"[{len(entry.value)}]", child.start_mark.line + 1, entry)
            entry.value.append(below)
            _fill(below, child, events, depth + 1)


def _scalar(entry: Entry, event: yaml.ScalarEvent) -> object:
    if event.tag not in (None, "!"):
        entry.wrong(f"the tag {event.tag} is not allowed in a plan")
    if not event.implicit[0]:  # quoted
        return event.value
    tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (True, False))
    read = _READERS.get(tag.removeprefix("tag:yaml.org,2002:"))
    if read is None:  # dates, and what YAML 1.1 has besides, are text here
        return event.value
    if len(event.value) > _LONGEST_NUMBER:
        entry.wrong(f"here a number is needed; got one of {len(event.value)} digits")
    return read(yaml.ScalarNode(tag, event.value))
