"""What became of the updates, as lines of a summary and as a table of its own."""

from collections.abc import Iterable, Sequence

from rich.text import Text

from numwatch.report.columns import column_lines
from numwatch.report.labels import labelled_all
from numwatch.report.text import edq_text, figure_text, known_text, share_text
from numwatch.report.update_figures import ParameterUpdates, StorageUpdates, Updates

# FP8 is no format to keep weights in; what it would cost is in the table.
_WIDE = ("bf16", "fp16")
# Half of the updates gone is where runs stall.
_ALARMING = 0.5


def updates_lines(updates: Updates) -> list[Text]:
    """Returns the summary's lines: what is lost, or what narrow weights without a copy would lose.

    EDQ is always there too: near 1 it can hide many swallowed updates.
    """
    lost = [kind for kind in updates.storages if kind.lost and kind.swallowed is not None]
    wide = [
        kind
        for kind in updates.storages
        if not kind.lost and kind.storage in _WIDE and kind.swallowed is not None
    ]
    lines = [line for kind in lost for line in _lost(kind)]
    if not lost and wide:
        lines.append(_would_lose(wide[0], wide[1:]))
        own = next((kind for kind in wide if kind.storage == updates.low_format), None)
        if own is not None and own.deferred is not None:
            lines.append(_deferred(own))
    return labelled_all("updates", lines)


def updates_table(updates: Updates) -> list[Text]:
    """Returns one line a parameter, the worst first, and what the columns mean."""
    storages = list(dict.fromkeys(line.storage for line in updates.parameters))
    by_parameter: dict[str, dict[str, ParameterUpdates]] = {}
    for line in updates.parameters:
        by_parameter.setdefault(line.parameter, {})[line.storage] = line
    worst = sorted(by_parameter.items(), key=lambda item: _badness(item[1].values()), reverse=True)
    head = ["parameter", "updates", "ratio"]
    for storage in storages:
        head += [f"{storage} swallowed", "EDQ"]
    rows = [[Text(name), *_cells(own, storages)] for name, own in worst]
    return [
        *column_lines(head, rows, "lrr" + "rr" * len(storages)),
        Text(),
        *(Text(note, style="dim") for note in _notes(updates)),
    ]


def _lost(kind: StorageUpdates) -> list[Text]:
    share = known_text(kind.swallowed, estimated=kind.estimated)
    style = "bold red" if (kind.swallowed or 0.0) >= _ALARMING else ""
    text = Text().append(f"{kind.storage} weights lost {share} of their updates", style=style)
    text.append(f", EDQ {edq_text(kind.edq_normalised)}{_worst(kind)}")
    if not kind.swallowed or kind.stochastic_kept is None:
        return [text]
    return [text, Text(f"stochastic rounding would save {share_text(kind.stochastic_kept)}")]


def _would_lose(first: StorageUpdates, others: Sequence[StorageUpdates]) -> Text:
    share = known_text(first.swallowed, estimated=first.estimated)
    text = f"{first.storage} weights without FP32 masters would lose {share} of updates"
    text += f", EDQ {edq_text(first.edq_normalised)}{_worst(first)}"
    for kind in others:
        text += f" · {kind.storage} {known_text(kind.swallowed, estimated=kind.estimated)}"
    return Text(text)


def _deferred(kind: StorageUpdates) -> Text:
    share = known_text(kind.deferred, estimated=kind.estimated)
    return Text(f"{share} deferred: the FP32 weights hold them, their {kind.storage} copy stayed")


def _worst(kind: StorageUpdates) -> str:
    if kind.worst is None or not kind.worst_swallowed or kind.parameters == 1:
        return ""
    return f" (worst: {kind.worst} {share_text(kind.worst_swallowed)})"


def _badness(lines: Iterable[ParameterUpdates]) -> tuple[float, ...]:
    # In the order of the storages: the run's own first.
    return tuple(line.swallowed or 0.0 for line in lines)


def _cells(own: dict[str, ParameterUpdates], storages: Sequence[str]) -> list[Text]:
    any_line = next(iter(own.values()))
    updates = f"{any_line.updates}{' of a sample' if any_line.sampled else ''}"
    cells = [updates, figure_text(any_line.ratio)]
    for storage in storages:
        line = own.get(storage)
        if line is None:
            cells += [known_text(None)] * 2
            continue
        share = known_text(line.swallowed, estimated=line.intended == "estimate")
        cells += [f"{share}{' !' if line.lost else ''}", edq_text(line.edq_normalised)]
    return [Text(cell) for cell in cells]


def _notes(updates: Updates) -> list[str]:
    notes = [
        "updates: non-zero ones measured; ratio: norm of the update over that of the weights",
        "swallowed: updates that weights stored so would lose; EDQ: normalised, 1 is whole",
    ]
    if any(line.lost for line in updates.parameters):
        notes.append("! the weights are stored so: these updates are gone")
    if any(line.intended == "estimate" for line in updates.parameters):
        notes.append("~ the intended update is estimated: this optimizer is not element-wise")
    deferred = [(kind.storage, kind.deferred) for kind in updates.storages]
    kept = [(kind.storage, kind.stochastic_kept) for kind in updates.storages]
    return [
        *notes,
        *_by_storage("deferred, held by FP32 weights whose narrow copy stayed", deferred),
        *_by_storage("saved by stochastic rounding", kept),
    ]


def _by_storage(what: str, shares: Iterable[tuple[str, float | None]]) -> list[str]:
    known = [f"{storage} {share_text(share)}" for storage, share in shares if share is not None]
    return [f"{what}: {' · '.join(known)}"] if known else []
