import io
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from summary_builders import amax_only, fp8_run, fp16_run, rows, slot
from weight_builders import bf16_true_run, fp16_true_run, scaled_run, shadowed_run

from numwatch import open_run, tensor_stats
from numwatch.record import Recorder
from numwatch.report import print_summary, summarize
from numwatch.report.slot_table import SCALED_MARK
from numwatch.report.tables import TABLES, table_lines
from numwatch.report.terminal import summary_lines
from numwatch.report.text import (
    UNKNOWN,
    amax_text,
    ascii_text,
    bits_text,
    bounded_text,
    count_text,
    edq_text,
    nonfinite_text,
    scale_text,
    share_text,
    sparkline,
)
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.stats import Bounded

GOLDEN = Path(__file__).parent / "golden"


def printed(summary, width=100, encoding="utf-8", **options):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    print_summary(summary, Console(file=file, width=width, **options))
    file.flush()
    return raw.getvalue().decode(encoding)


def damaged_run(directory):
    fp16_run(directory)
    steps = directory / "steps" / "attempt-000-part-00000.parquet"
    shutil.copy(steps, directory / "tensors" / "attempt-000-part-00001.parquet")


def amax_only_run(directory):
    info = slot("head", "grad_weight")
    packed = rows([(info, amax_only(4.1e3), None)], 65536.0, full=False)
    with Recorder.open(directory, precision="16-mixed", device="cpu", arguments={}) as recorder:
        recorder.describe([info])
        recorder.write(Snapshot(0, StepScalars(), packed))


def empty_run(directory):
    Recorder.open(directory, precision="32-true", device="cpu", arguments={}).close()


@pytest.mark.parametrize(
    ("name", "write", "options", "width"),
    [
        ("fp16", fp16_run, {}, 100),
        ("fp16-narrow", fp16_run, {}, 80),
        ("fp16-epoch-1", fp16_run, {"epoch": 1}, 100),
        ("fp16-worst-2", fp16_run, {"worst": 2}, 100),
        ("fp8", fp8_run, {}, 100),
        ("amax-only", amax_only_run, {}, 100),
        ("damaged", damaged_run, {}, 100),
        ("empty", empty_run, {}, 100),
        ("bf16-true", bf16_true_run, {}, 100),
        ("fp16-true", fp16_true_run, {}, 100),
        ("shadowed", shadowed_run, {}, 100),
        ("scaled", scaled_run, {}, 100),
    ],
)
def test_the_terminal_shows_what_it_did(tmp_path, name, write, options, width):
    """After a wanted change, write what `printed` gives to the golden file and read the diff."""
    write(tmp_path)
    summary = summarize(open_run(tmp_path), **options)
    text = printed(summary, width, force_terminal=True, color_system=None)
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "write", "tables"),
    [
        ("table-loss-scale", scaled_run, ["loss scale"]),
        ("table-updates", bf16_true_run, ["updates"]),
        ("table-updates-deferred", shadowed_run, ["updates"]),
        ("table-states", bf16_true_run, ["states"]),
        ("table-shadow", shadowed_run, ["shadow"]),
        ("tables-none", empty_run, TABLES),
    ],
)
def test_the_tables_show_what_they_did(tmp_path, name, write, tables):
    write(tmp_path)
    lines = table_lines(summarize(open_run(tmp_path)), tables)
    text = "".join(f"{line.plain.rstrip()}\n" for line in lines)
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_columns_are_aligned_and_fit(tmp_path):
    fp16_run(tmp_path)
    text = printed(summarize(open_run(tmp_path)))
    table = text.split("\n\n")[1].splitlines()
    verdicts = {line.rindex("  ") for line in table[1:]}
    assert len(verdicts) == 1
    assert max(map(len, text.splitlines())) <= 100


def test_colour_adds_nothing_but_colour(tmp_path):
    from rich.text import Text

    fp16_run(tmp_path)
    summary = summarize(open_run(tmp_path))
    coloured = printed(summary, force_terminal=True, color_system="truecolor")
    assert "\x1b[" in coloured
    assert Text.from_ansi(coloured).plain.rstrip() == printed(summary).rstrip()


def test_a_console_without_utf8_gets_ascii(tmp_path):
    fp16_run(tmp_path)
    summary = summarize(open_run(tmp_path))
    text = printed(summary, encoding="ascii")
    assert text == ascii_text(printed(summary))
    assert "65536 > 8192" in text


def test_a_file_gets_lines_wide_enough_for_slot_names(tmp_path):
    fp16_run(tmp_path)
    text = printed(summarize(open_run(tmp_path)), width=80, force_terminal=False)
    assert "blocks.0.attn.qkv:output" in text


def test_slots_without_a_scale_are_not_marked_as_scaled(tmp_path):
    """A loss scale in force marks gradients; it does not touch forward tensors."""
    fp16_run(tmp_path)
    for line in printed(summarize(open_run(tmp_path))).splitlines():
        if ":" in line.split(" ")[0]:
            assert (SCALED_MARK in line) == ("grad" in line.split(" ")[0])


def test_the_smallest_amax_is_legible(tmp_path):
    import torch

    info = slot("fc", "grad_output", dtype="float32", fmt="fp32")
    packed = rows([(info, tensor_stats(torch.tensor([2.2e-5])), None)], 4.0)
    with Recorder.open(tmp_path, precision="16-mixed", device="cpu", arguments={}) as recorder:
        recorder.describe([info])
        recorder.write(Snapshot(0, StepScalars(), packed))
    text = printed(summarize(open_run(tmp_path)))
    assert f"2.2e-05  {SCALED_MARK}" in text
    assert "0.0000" not in text


def scalars_run(directory, *steps):
    with Recorder.open(directory, precision="16-mixed", device="cpu", arguments={}) as recorder:
        for i, step in enumerate(steps):
            recorder.write(Snapshot(i, step))
    return summarize(open_run(directory))


def test_throughout_is_said_of_a_constant_loss_scale_alone(tmp_path):
    same = StepScalars(loss_scale_before=65536.0, loss_scale_after=65536.0)
    assert "65536 throughout" in printed(scalars_run(tmp_path / "a", same))
    up = StepScalars(loss_scale_before=65536.0, loss_scale_after=131072.0)
    down = StepScalars(loss_scale_before=131072.0, loss_scale_after=32768.0)
    back = StepScalars(loss_scale_before=32768.0, loss_scale_after=65536.0)
    text = printed(scalars_run(tmp_path / "b", up, down, back))
    assert "65536 → 65536, lowest 32768, highest 131072  " in text


def test_seconds_too_few_to_show_are_not_shown(tmp_path):
    step = StepScalars(step_seconds=1.0, numwatch_seconds=0.02)
    summary = replace(scalars_run(tmp_path, step), start_seconds=0.04)
    assert printed(summary).splitlines()[0].endswith("cost 2.0 % added to step time")
    summary = replace(summary, start_seconds=0.06)
    assert printed(summary).splitlines()[0].endswith("added to step time + 0.1 s to start")


def test_a_loss_that_is_no_number_stands_out(tmp_path):
    summary = scalars_run(tmp_path, StepScalars(loss=1.0), StepScalars(loss=math.nan))
    line = next(line for line in summary_lines(summary, 100) if "→" in line.plain)
    assert [line.plain[s.start : s.end] for s in line.spans if "red" in s.style] == ["nan"]


def test_what_could_not_be_read_is_not_said_to_be_still_to_come(tmp_path):
    fp16_run(tmp_path)
    for table in ("steps", "tensors"):
        part = tmp_path / table / "attempt-000-part-00000.parquet"
        part.write_bytes(part.read_bytes()[:100])
    text = printed(summarize(open_run(tmp_path)))
    assert "no steps could be read" in text
    assert "no tensor rows could be read" in text
    assert " yet" not in text


def test_notes_speak_of_marks_that_are_on_screen(tmp_path):
    info = slot("fc", "grad_output")
    packed = rows([(info, tensor_stats(torch.zeros(8)), None)], 4.0)
    with Recorder.open(tmp_path, precision="16-mixed", device="cpu", arguments={}) as recorder:
        recorder.describe([info])
        recorder.write(Snapshot(0, StepScalars(), packed))
    text = printed(summarize(open_run(tmp_path)))
    assert "~" not in text
    assert UNKNOWN not in text
    assert "1 slot: 1 all zero\nseen: 1 full of 1 step\n" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2.2e-5, "2.2e-05"), (61440.0, "6.1e+04"), (1.0, "1.0e+00"), (5e-324, "4.9e-324")],
)
def test_amax_text(value, text):
    assert amax_text(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0 %"),
        (1e-12, "<0.1 %"),
        (0.00049, "<0.1 %"),
        (0.0005, "0.1 %"),
        (0.31, "31.0 %"),
        (0.9996, ">99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_share_text(share, text):
    assert share_text(share) == text


@pytest.mark.parametrize(
    ("share", "estimated", "text"),
    [
        (None, False, UNKNOWN),
        (Bounded(0.31, 0.31, 0.31), False, "31.0 %"),
        (Bounded(0.31, 0.3099, 0.3101), False, "31.0 %"),
        (Bounded(0.31, 0.2, 0.4), False, "~31 %"),
        (Bounded(0.002, 0.0, 0.4), False, "~0.2 %"),
        (Bounded(0.31, 0.0, 0.5), True, "~31 %"),
        (Bounded(0.0, 0.0, 0.0), True, "~0 %"),
        (Bounded(0.002, 0.0, 0.5), True, "~0.2 %"),
        (Bounded(1e-6, 0.0, 0.5), True, "~0 %"),
    ],
)
def test_bounded_text(share, estimated, text):
    assert bounded_text(share, estimated=estimated) == text


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (None, UNKNOWN),
        (0.1, "0.1 bit"),
        (1.0, "1.0 bit"),
        (3.44, "3.4 bits"),
        (31.2, "31 bits"),
        (-2.5, "-2.5 bits"),
        (-1e-9, "0.0 bit"),
    ],
)
def test_bits_text(bits, text):
    assert bits_text(bits) == text


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (65536.0, "65536"),
        (2.0**24, "2^24"),
        (1.0, "1"),
        (0.5, "0.5"),
        (2.0**-24, "2^-24"),
        (0.0, "0"),
        (3e7, "3e+07"),
    ],
)
def test_scale_text(scale, text):
    assert scale_text(scale) == text


def test_count_and_nonfinite_text():
    assert [count_text(n) for n in (0, 999, 1000, 1_234_567)] == ["0", "999", "1.0k", "1.2M"]
    assert nonfinite_text(0, 0) == "0"
    assert nonfinite_text(2, 0) == "2 nan"
    assert nonfinite_text(0, 2) == "2 inf"
    assert nonfinite_text(1, 2) == "3 nan+inf"


@pytest.mark.parametrize(
    ("edq", "text"),
    [(None, UNKNOWN), (0.0, "0.00"), (0.998, "1.00"), (0.028, "0.03"), (0.0041, "0.004")],
)
def test_edq_text(edq, text):
    assert edq_text(edq) == text


def test_sparkline():
    assert sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5, 5]) == "▄▄▄"
    assert sparkline([float("-inf"), 0, 1]) == "▁▁█"
    assert sparkline([float("-inf"), 3]) == "▁▄"
    assert sparkline([]) == ""
