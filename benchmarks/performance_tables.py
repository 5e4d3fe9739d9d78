"""The tables of docs/performance.md, as lines of Markdown, from result files alone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monitors import AMAX, CONTROL, DEFAULT, FULL, PEERS, TENSORS, VARIANTS
from overhead import multiple
from trainee import AUTOCAST

OPEN = "not measured yet"
CELLS = {
    f"{model}-{precision}": f"{model.upper()} {precision.upper()}"
    for model in ("gpt", "cnn")
    for precision in AUTOCAST
    if (model, precision) != ("cnn", "fp8")
}
LABELS = {
    CONTROL: "two bare trainings: the noise of the method",
    DEFAULT: "numwatch, default cadence",
    FULL: "numwatch, full rows, updates and optimizer state at every step",
    TENSORS: "numwatch, full rows at every step, `update_samples=0`",
    AMAX: "numwatch, amax and non-finites alone at every step",
    "hook with two .item()": "a hook with two `.item()` on each GEMM's output and its gradient",
    "HistogramObserver": "torch's `HistogramObserver` on inputs and outputs of each GEMM",
    "DebugUnderflowOverflow": "transformers' `DebugUnderflowOverflow`",
    "wandb.watch(all)": '`wandb.watch(log="all")` at every step',
}
Report = dict[str, Any]


class Results:
    """The result files of a folder.

    Attributes:
        gpus: Names of the GPUs there are results of, as in the files' names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        stems = [path.stem for path in sorted(folder.glob("*.json"))]
        kinds = [f"overhead-{cell}{tail}-" for cell in CELLS for tail in ("", "-compiled")]
        found = {
            stem.removeprefix(kind)
            for stem in stems
            for kind in (*kinds, "kernel-", "scale-", "soak-", "where-gpt-bf16-")
            if stem.startswith(kind) and not stem.startswith(f"{kind}compiled-")
        }
        self.gpus = sorted(found - {"cpu"})

    def get(self, name: str, device: str = "cpu") -> Report | None:
        """Returns a benchmark's report on a device, None where it is not measured yet."""
        path = self._folder / f"{name}-{device}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def devices(self) -> dict[str, str]:
        """Column titles by device; a GPU's column is there before any GPU was."""
        gpus = {name: name for name in self.gpus} or {"gpu": "GPU"}
        return {"cpu": "CPU", **gpus}


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def row_of(report: Report | None, name: str) -> Report | None:
    """Returns the results of a monitor in an overhead report."""
    rows = report["results"] if report else []
    return next((row for row in rows if row["name"] == name), None)


def overhead(report: Report | None, name: str) -> str:
    """Returns the overhead of a monitor, with its standard error where there is one."""
    if report and report["left_out"]:
        return f"left out: {report['left_out']}"
    row = row_of(report, name)
    if row is None:
        return OPEN
    if "failed" in row:
        return "not installed" if "ModuleNotFound" in row["failed"] else "fails"
    error = f" ± {100 * row['error']:.1f}" if row["error"] is not None else ""
    return f"{100 * (row['cost'] - 1):+.1f}{error} %"


def judged(report: Report | None, name: str, limit: float | None) -> str:
    """Returns the overhead, and whether it is above what was asked for."""
    told, row = overhead(report, name), row_of(report, name)
    missed = limit is not None and row is not None and row.get("cost", 1.0) - 1 > limit
    return f"{told}, missed" if missed else told


def at_a_glance(results: Results) -> list[str]:
    """What was asked for beside what was measured."""
    asked: tuple[tuple[str, str, float, float | None], ...] = (
        ("gpt-fp32", DEFAULT, 0.01, None),
        ("gpt-bf16", DEFAULT, 0.01, 0.01),
        ("gpt-fp32", TENSORS, 0.15, None),
        ("gpt-bf16", TENSORS, 0.25, 0.10),
        ("gpt-fp32", FULL, 0.15, None),
        ("gpt-bf16", FULL, 0.25, 0.10),
        ("gpt-fp32", AMAX, 0.06, None),
        ("gpt-bf16", AMAX, 0.06, None),
    )
    rows = []
    for cell, name, cpu, gpu in asked:
        limits = [f"CPU {100 * cpu:g} %"] + ([f"GPU {100 * gpu:g} %"] if gpu else [])
        cells = (
            judged(results.get(f"overhead-{cell}", device), name, cpu if device == "cpu" else gpu)
            for device in results.devices
        )
        rows.append([f"{LABELS[name]}, {CELLS[cell]}", ", ".join(limits), *cells])
    for text, key, limit, form in (
        ("host work of a full step at 10,000 slots", "full_seconds", "limit_seconds", "{:.3f} s"),
        (
            "resident memory that watching them adds, at its peak",
            "peak_mib",
            "limit_mib",
            "{:.0f} MiB",
        ),
    ):
        found = [(results.get("scale", device) or {}).get("claims") for device in results.devices]
        cells = [_claim(claim, key, limit, form) for claim in found]
        asked_for = next((form.format(claim[limit]) for claim in found if claim), "")
        rows.append([text, asked_for, *cells])
    return table(["", "asked for, at most", *results.devices.values()], rows)


def _claim(claim: Report | None, key: str, limit: str, form: str) -> str:
    if not claim:
        return OPEN
    return form.format(claim[key]) + (", missed" if claim[key] > claim[limit] else "")


def matrix(
    results: Results,
    names: Sequence[str],
    tell: Callable[[Report | None, str], str],
    tail: str = "",
) -> list[str]:
    """A table for each device: monitors by cells."""
    lines: list[str] = []
    for device, title in results.devices.items():
        reports = {cell: results.get(f"overhead-{cell}{tail}", device) for cell in CELLS}
        if not any(reports.values()):
            lines += [f"{title}: {OPEN}.", ""]
            continue
        rows = [
            [LABELS[name], *(tell(report, name) for report in reports.values())] for name in names
        ]
        lines += [f"{title}:", "", *table(["", *CELLS.values()], rows), ""]
    return lines[:-1]


def by_cadence(results: Results) -> list[str]:
    """Numwatch's own cadences."""
    return matrix(results, list(VARIANTS), overhead)


def beside(report: Report | None, name: str) -> str:
    """A peer's overhead, and how many times numwatch's full rows and amax that is."""
    told, row = overhead(report, name), row_of(report, name)
    if row is None or "cost" not in row or name in VARIANTS:
        return told
    times = [multiple(row, row_of(report, other)) for other in (TENSORS, AMAX)]
    return f"{told} ({', '.join('?' if n is None else f'{n:.1f}x' for n in times)})"


def peers(results: Results) -> list[str]:
    """Other monitors at the same cadence."""
    return matrix(results, [TENSORS, AMAX, *PEERS], beside)


def compiled(results: Results) -> list[str]:
    """The same under torch.compile, with graph breaks and compiles while measuring."""

    def tell(report: Report | None, name: str) -> str:
        row = row_of(report, name)
        if row is None or "cost" not in row:
            return overhead(report, name)
        return (
            f"{overhead(report, name)}; {row['graph_breaks']} breaks, {row['late_compiles']} late"
        )

    return matrix(results, [*VARIANTS, *PEERS], tell, "-compiled")


def kinds(results: Results) -> list[str]:
    """What each kind of step of the default cadence costs."""
    lines: list[str] = []
    for device, title in results.devices.items():
        cells = ("gpt-fp32", "gpt-bf16")
        found = [row_of(results.get(f"overhead-{cell}", device), DEFAULT) or {} for cell in cells]
        names = list(dict.fromkeys(kind for row in found for kind in row.get("by_kind", {})))
        if not names:
            lines += [f"{title}: {OPEN}.", ""]
            continue
        rows = [
            [name, *(f"{row['by_kind'][name]:.2f}" if row else OPEN for row in found)]
            for name in names
        ]
        titles = [f"{title}: watched / bare", *(CELLS[cell] for cell in cells)]
        lines += [*table(titles, rows), ""]
    return lines[:-1]


def where(results: Results) -> list[str]:
    """Shares of a watched training's time."""
    lines: list[str] = []
    for device, title in results.devices.items():
        for cell in ("gpt-fp32", "gpt-bf16", "cnn-fp32"):
            report = results.get(f"where-{cell}", device)
            if report is None:
                continue
            rows = report["results"]
            areas = list(dict.fromkeys(area for row in rows for area in row["areas"]))
            titles = [f"{title}, {CELLS[cell]}", *(row["name"] for row in rows)]
            cells = [
                [area, *(f"{100 * row['areas'].get(area, 0.0):.1f} %" for row in rows)]
                for area in areas
            ]
            lines += [*table(titles, cells), ""]
        if not any(line.startswith(f"| {title},") for line in lines):
            lines += [f"{title}: {OPEN}.", ""]
    return lines[:-1]
