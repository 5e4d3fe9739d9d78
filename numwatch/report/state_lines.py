"""What is wrong with an optimizer's state, as lines of a summary, and all of it as a table."""

from collections.abc import Callable, Sequence

from rich.text import Text

from numwatch.report.columns import column_lines
from numwatch.report.labels import labelled_all
from numwatch.report.state_figures import StateFigures
from numwatch.report.text import figure_text, known_text, share_text

ALARMING_RMS = 2.3
"""RMS_t above which loss spikes follow (Wortsman et al. 2023, section 3.4)."""
_NOTABLE_SHARE = 0.01


def states_lines(states: Sequence[StateFigures]) -> list[Text]:
    """Returns a line for each kind of state with something wrong, and one for the largest RMS_t."""
    kinds = dict.fromkeys((line.state, line.dtype) for line in states)
    lines = []
    for state, dtype in kinds:
        members = [line for line in states if (line.state, line.dtype) == (state, dtype)]
        if found := _troubles(members):
            # Rare embeddings are below eps in any healthy run; what a dtype breaks is an alarm.
            broken = any(line.eps_is_zero or line.never_decays for line in members)
            style = "bold yellow" if broken else ""
            lines.append(Text(f"{state} in {dtype}: {', '.join(found)}", style=style))
    spike = max(states, key=lambda line: line.rms or 0.0, default=None)
    if spike is not None and (spike.rms or 0.0) >= ALARMING_RMS:
        lines.append(
            Text(
                f"RMS_t {figure_text(spike.rms)} of {spike.parameter} in step {spike.rms_step}: "
                f"loss spikes follow where it passes {ALARMING_RMS}",
                style="yellow",
            )
        )
    return labelled_all("state", lines)


def states_table(states: Sequence[StateFigures]) -> list[Text]:
    """Returns one line for each tensor of state, in order of appearance."""
    head = ("state", "dtype", "eps", "decay", "below eps", "g² flushed", "RMS_t", "in step")
    rows = [[Text(cell) for cell in _cells(line)] for line in states]
    return [
        *column_lines(head, rows, "llrrrrrr"),
        Text(),
        Text(
            "eps, decay: as the optimizer was given them, then as the dtype has them", style="dim"
        ),
        Text(
            "below eps: elements whose sqrt(v) is smaller; g² flushed: elements with a gradient "
            "whose v is 0; RMS_t: its largest",
            style="dim",
        ),
    ]


def _troubles(members: Sequence[StateFigures]) -> list[str]:
    found = []
    if zero := next((line for line in members if line.eps_is_zero), None):
        found.append(f"eps {zero.eps:g} is 0 there")
    if frozen := next((line for line in members if line.never_decays), None):
        found.append(f"decay {frozen.decay:g} is 1 there, so it never decays")
    found += _share(members, "g² flushed for {}", lambda line: line.vanished)
    found += _share(members, "sqrt(v) below eps for {}", lambda line: line.below_eps)
    return found


def _share(
    members: Sequence[StateFigures], text: str, share: Callable[[StateFigures], float | None]
) -> list[str]:
    known = [(value, line) for line in members if (value := share(line)) is not None]
    weights = sum(line.sampled for _, line in known)
    mean = sum(value * line.sampled for value, line in known) / weights if weights else 0.0
    if mean < _NOTABLE_SHARE:
        return []
    value, line = max(known, key=lambda pair: pair[0])
    worst = f" (worst: {line.parameter} {share_text(value)})" if len(known) > 1 else ""
    return [text.format(share_text(mean)) + worst]


def _cells(line: StateFigures) -> list[str]:
    return [
        f"{line.parameter}:{line.state}",
        line.dtype,
        _stored(line.eps, line.eps_stored),
        _stored(line.decay, line.decay_stored),
        known_text(line.below_eps),
        known_text(line.vanished),
        figure_text(line.rms),
        known_text(None) if line.rms_step is None else str(line.rms_step),
    ]


def _stored(given: float | None, stored: float | None) -> str:
    if given is None or stored is None or given == stored:
        return known_text(None) if given is None else f"{given:g}"
    return f"{given:g} → {stored:.6g}"
