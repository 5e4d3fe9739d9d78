"""A proof as `numwatch prove` prints it: the losses, what each operand lost, the verdict."""

from __future__ import annotations

import math

from rich.text import Text

from numwatch.recommend.proof import Proof, SlotProof, Verdict, spread
from numwatch.report.columns import column_lines
from numwatch.report.labels import labelled
from numwatch.report.text import bounded_text, several, share_text

_STYLES: dict[Verdict, str] = {
    "holds": "bold green",
    "fails": "bold red",
    "undecided": "bold yellow",
}
_HEAD = ("operand", "format", "flushed, predicted", "observed", "saturated, predicted", "observed")


def proof_lines(proof: Proof, worst: int = 12) -> list[Text]:
    """Returns the runs, the operands that flush most, and the verdict.

    Args:
        proof: The proof.
        worst: How many operands at most.
    """
    how = "emulated" if proof.emulated else "in its real formats"
    slower = proof.seconds["plan"] / proof.seconds["baseline"]
    lines = [
        labelled(
            "trained",
            Text(
                f"{several(len(proof.seeds), 'seed')} of {several(proof.steps, 'step')}, with and "
                f"without the plan; {how} it took {slower:.2f} times as long"
            ),
        ),
        Text(),
        *column_lines(
            ("seed", "baseline", "plan", "rise"),
            [
                [Text(str(seed)), Text(_loss(here)), Text(_loss(there)), Text(_rise(rise))]
                for seed, here, there, rise in zip(
                    proof.seeds, proof.baseline, proof.plan, proof.rises, strict=True
                )
            ],
            "lrrr",
        ),
        Text(),
    ]
    if proof.slots:
        lines += column_lines(_HEAD, [_cells(slot) for slot in proof.slots[:worst]], "llrrrr")
        hidden = len(proof.slots) - worst
        if hidden > 0:
            lines.append(Text(f"{several(hidden, 'operand')} more flush less", style="dim"))
        lines += [
            Text("predicted from the baseline's record of seed 0, observed under the plan", "dim"),
            Text(),
        ]
    lines.append(labelled(proof.verdict, _sentence(proof), _STYLES[proof.verdict]))
    return lines


def _sentence(proof: Proof) -> Text:
    (here, here_spread), (there, there_spread) = spread(proof.baseline), spread(proof.plan)
    told = (
        f"{proof.figure} {_loss(there)} ± {there_spread:.2g} under the plan, {_loss(here)} ± "
        f"{here_spread:.2g} without"
    )
    if math.isfinite(proof.rise):
        told += f": {_rise(proof.rise)}"
        if math.isfinite(proof.error):
            told += f" ± {100 * proof.error:.2g} %"
        told += f" where {100 * proof.tolerance:g} % is allowed"
    if not all(map(math.isfinite, proof.baseline)):
        told = f"the baseline itself diverged: {proof.figure} tells nothing of the plan"
    elif proof.verdict == "undecided":
        told += "; more seeds would tell"
    return Text(told)


def _cells(slot: SlotProof) -> list[Text]:
    return [
        Text(slot.slot, style="bold"),
        Text(slot.format),
        Text(bounded_text(slot.predicted_flushed)),
        Text(share_text(slot.flushed)),
        Text(bounded_text(slot.predicted_saturated)),
        Text(share_text(slot.saturated)),
    ]


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def _rise(rise: float) -> str:
    return f"{100 * rise:+.2f} %" if math.isfinite(rise) else "diverged"
