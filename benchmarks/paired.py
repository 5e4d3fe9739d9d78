"""The price of a monitor by pairs of steps: a bare and a watched training take turns.

Both train the same model on the same batches in one process, so what else the machine does falls
on both. Each kind of step has its median ratio; a cadence's cost is their mean, weighted by how
often each kind comes. A kind is what a step records (full rows, with or without blocks, amax alone,
nothing) and what the next one will, because a step's weights are seen once the last has ended.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from monitors import After, Trained, Variant
from torch import Tensor

from numwatch.schedule import Schedule

_NEVER = 10**6
"""Cadences from here on are never reached by a benchmark."""


class Steps(Trained, Protocol):
    """What can be trained in turns."""

    def batch(self, seed: int) -> Any:
        """Returns a step's data, the same for the same seed."""

    def step(self, batch: Any) -> Tensor:
        """Trains one step and returns the loss."""


@dataclass(frozen=True)
class Length:
    """How long a variant is measured.

    Attributes:
        seconds: At most so long, once `pairs` are there.
        pairs: At least so many.
        warm_up: Pairs before that, at least one round of the cadence.
    """

    seconds: float
    pairs: int
    warm_up: int


def period(schedule: Schedule) -> int:
    """Returns after how many steps a cadence repeats."""
    cadences = (
        schedule.every_n_steps,
        schedule.amax_every_n_steps,
        schedule.block_every_n_steps,
    )
    return math.lcm(*(n for n in cadences if 0 < n < _NEVER))


def kind(schedule: Schedule, step: int) -> str:
    """Returns what a step after the first records, and what the next one will."""
    return ", then ".join(_mode(schedule, step + later) for later in (0, 1))


def _mode(schedule: Schedule, step: int) -> str:
    mode = schedule.mode(step).name.lower()
    n = schedule.block_every_n_steps
    return f"{mode} with blocks" if mode == "full" and n and step % n == 0 else mode


def shares(schedule: Schedule) -> dict[str, float]:
    """Returns how often each kind of step comes, as shares that sum to 1."""
    length = period(schedule)
    found: dict[str, float] = {}
    for step in range(length, 2 * length):  # the first step of all is full at any cadence
        name = kind(schedule, step)
        found[name] = found.get(name, 0.0) + 1 / length
    return found


def watched_first(schedule: Schedule, step: int) -> bool:
    """Whether the watched one goes first: each kind of step goes both ways equally often."""
    rounds, place = divmod(step, period(schedule))
    return (rounds + place) % 2 == 1


def cost(ratios: dict[str, list[float]], schedule: Schedule) -> tuple[float, float]:
    """Returns the mean of medians weighted by a cadence, and its standard error.

    Of a median of n the error is 1.25 sigma / sqrt(n), of normal pairs with the same quartiles.

    Args:
        ratios: Watched / bare of each pair by kind; all kinds of `schedule` are there.
        schedule: The cadence.
    """
    weights = shares(schedule)
    middle = sum(share * statistics.median(ratios[name]) for name, share in weights.items())
    variance = sum(share**2 * _error(ratios[name]) ** 2 for name, share in weights.items())
    return middle, math.sqrt(variance)


def _error(pairs: list[float]) -> float:
    if len(pairs) < 4:
        return math.nan
    low, _, high = statistics.quantiles(pairs, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(pairs))


def seconds(who: Steps, batch: Any, after: After) -> float:
    """Returns how long a step and what watches it take, the device's work included."""
    start = time.perf_counter()
    loss = who.step(batch)
    after(loss)
    if loss.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    variant: Variant,
    make: Callable[[], Steps],
    length: Length,
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, Any]:
    """Returns a variant's cost and the pairs it was found from.

    Args:
        variant: The way of watching.
        make: Makes a training; both start alike.
        length: How long to measure.
        progress: Told what share is done.
    """
    torch.compiler.reset()
    bare, watched = make(), make()
    schedule = variant.measured
    cycle = period(schedule)
    warm_up = -(-max(length.warm_up, cycle + 1) // cycle) * cycle
    allowed = length.seconds * variant.share
    ratios: dict[str, list[float]] = {}
    bare_seconds: list[float] = []
    breaks = _counter("graph_break")
    with variant.attach(watched) as after:
        step, started = 0, time.perf_counter()
        graphs = 0
        while True:
            if step == warm_up:
                started, graphs = time.perf_counter(), _counter("stats", "unique_graphs")
            measured = step - warm_up
            spent = time.perf_counter() - started if measured >= 0 else 0.0
            if measured >= length.pairs and measured % cycle == 0 and spent >= allowed:
                break
            progress(min(spent / allowed, 1.0) if allowed else 0.0)
            batch = bare.batch(step)
            turns: list[tuple[Steps, After]] = [(bare, lambda _loss: None), (watched, after)]
            order = turns[::-1] if watched_first(schedule, step) else turns
            times = {who: seconds(who, batch, done) for who, done in order}
            if measured >= 0:
                ratios.setdefault(kind(schedule, step), []).append(times[watched] / times[bare])
                bare_seconds.append(times[bare])
            step += 1
    middle, error = cost(ratios, variant.weighted)
    return {
        "cost": round(middle, 5),
        "error": None if math.isnan(error) else round(error, 5),
        "by_kind": {name: round(statistics.median(pairs), 4) for name, pairs in ratios.items()},
        "pairs": {name: len(pairs) for name, pairs in ratios.items()},
        "bare_step_seconds": statistics.median(bare_seconds),
        "graph_breaks": _counter("graph_break") - breaks,
        "late_compiles": _counter("stats", "unique_graphs") - graphs,
    }


def _counter(group: str, name: str | None = None) -> int:
    """Returns what torch.compile has counted in this process."""
    counted = torch._dynamo.utils.counters[group]  # noqa: SLF001  # documented for debugging
    return counted[name] if name else sum(counted.values())
