"""The tables of docs/performance.md that are not of overhead: growth, kernels, record, soak."""

from collections.abc import Sequence
from typing import Any

from counting import HELD
from performance_tables import CELLS, OPEN, Results, table
from scale import COLUMNS

_AXES = {"slots": "slots", "steps": "steps", "elements": "elements of a tensor"}
_KERNEL = {
    "dtype": "{}",
    "numel": "{:,}",
    "full_us": "{:.1f}",
    "amax_us": "{:.1f}",
    "norm_us": "{:.1f}",
    "copy_us": "{:.1f}",
    "full_per_norm": "{:.2f}",
    "amax_per_norm": "{:.2f}",
    "full_per_copy": "{:.2f}",
}
_HELD = dict(zip(HELD, ("resident MiB", "open files", "threads", "objects"), strict=True))


def rows_of(rows: Sequence[dict[str, Any]], forms: dict[str, str]) -> list[str]:
    """Returns a table of the columns that the first row has."""
    names = [name for name in forms if name in rows[0]]
    told = [[forms[n].format(row[n]) if n in row else "" for n in names] for row in rows]
    return table([name.replace("_", " ") for name in names], told)


def scale(results: Results) -> list[str]:
    """Growth over slots, steps and elements."""
    lines: list[str] = []
    for device, title in results.devices.items():
        report = results.get("scale", device)
        if report is None:
            lines += [f"{title}: {OPEN}.", ""]
            continue
        for axis, name in _AXES.items():
            if not report["axes"][axis]:
                continue
            # A step count says nothing of the other axes; slots are told everywhere.
            forms = {key: form for key, form in COLUMNS.items() if key in ("slots", axis)}
            forms = {axis: forms[axis]} | forms
            forms |= {key: form for key, form in COLUMNS.items() if key not in _AXES}
            grown = ", ".join(
                f"{key.removesuffix('_ms')} steps' time as {axis}^{exponent:.2f}"
                for key, exponent in report["exponents"][axis].items()
            )
            lines += [f"{title}, over {name}:", "", *rows_of(report["axes"][axis], forms), ""]
            lines += [f"Growth: {grown}.", ""] if grown else []
    return lines[:-1]


def kernel(results: Results) -> list[str]:
    """The pass over one tensor beside what torch can do with it."""
    lines: list[str] = []
    for device, title in results.devices.items():
        report = results.get("kernel", device)
        if report is None or not report.get("rows"):
            lines += [f"{title}: {OPEN}.", ""]
        else:
            threads = report["machine"]["threads"]
            lines += [f"{title}, {threads} threads:", "", *rows_of(report["rows"], _KERNEL), ""]
    return lines[:-1]


def record(results: Results) -> list[str]:
    """What the record takes, and what reading it does."""
    scaled, analysed = results.get("scale"), results.get("analysis")
    rows = []
    for point in (scaled or {"axes": {"slots": []}})["axes"]["slots"]:
        told = f"{point['bytes_per_row']:.0f} bytes, {point['record_bytes_per_row']:.0f} all told"
        rows.append([f"a slot and recorded step, {point['slots']:,} slots", told])
    if not rows:
        rows.append(["a slot and recorded step", OPEN])
    for command in analysed["commands"] if analysed else []:
        told = f"{command['seconds']:.1f} s, {command['peak_mb']:.0f} MB"
        rows.append([f"`numwatch {command['name']}` of {command['rows']:,} rows", told])
    if not analysed:
        rows += [[f"`numwatch {name}`", OPEN] for name in ("report", "diagnose", "recommend")]
    return table(["", "takes"], rows)


def soak(results: Results) -> list[str]:
    """What a long run leaves behind."""
    lines: list[str] = []
    for device, title in results.devices.items():
        report = results.get("soak", device)
        if report is None:
            lines += [f"{title}: {OPEN}.", ""]
            continue
        rows = [
            [f"{sample['step']:,}", *(f"{sample[name]:,g}" for name in HELD)]
            for sample in report["samples"]
        ]
        rows.append(["growth in 10,000", *(f"{report['growth'][name]:+g}" for name in HELD)])
        lines += [*table([f"{title}: step", *_HELD.values()], rows), ""]
    return lines[:-1]


def machines(results: Results) -> list[str]:
    """What each figure was measured on, and when."""
    titles = ["results", "device", "date", "cores", "threads", "CPU capability", "torch"]
    kinds = [f"overhead-{cell}{tail}" for cell in CELLS for tail in ("", "-compiled")]
    kinds += [f"where-{cell}" for cell in CELLS]
    rows = []
    for kind in (*kinds, "kernel", "scale", "soak", "analysis"):
        for device in results.devices:
            report = results.get(kind, device)
            if report is None:
                continue
            on = report["machine"]
            cells = (on["device"], on["date"], on["cores"], on["threads"], on["cpu_capability"])
            rows.append([f"`{kind}-{device}.json`", *map(str, cells), on["versions"]["torch"]])
    return table(titles, rows) if rows else [f"Nothing: {OPEN}."]
