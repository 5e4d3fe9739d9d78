"""DeepSpeed's engine, which really trains on the CPU: what it tells of scale, skips and norm.

`make deepspeed` installs it and runs these.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import numwatch

pytest.importorskip("deepspeed")
RUNS = Path(__file__).with_name("deepspeed_runs.py")
BROKEN = 4


def ranks_of(arguments, ranks):
    """Runs the ranks; returns what the first printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = [
        subprocess.Popen(
            [sys.executable, RUNS, *map(str, arguments)],
            env={
                **os.environ,
                **common,
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": str(ranks),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in map(str, range(ranks))
    ]
    ended = [process.communicate(timeout=600) for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors
    return json.loads(ended[0][0].splitlines()[-1])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("how", "stage", "micro_batches", "ranks"),
    [
        ("loop", 0, 1, 1),
        ("loop", 1, 1, 2),
        ("loop", 2, 2, 2),
        ("loop", 3, 1, 1),
        ("lightning", 2, 1, 1),
        ("lightning", 1, 2, 1),
        ("huggingface", 2, 2, 1),
    ],
)
def test_scale_skips_and_norm_are_the_engines(
    tmp_path, how, stage, micro_batches, ranks, precision
):
    said = ranks_of([tmp_path, how, stage, precision, micro_batches], ranks)
    told = said["told"]
    assert said["same"], "watched training differs from bare training"

    run = numwatch.open_run(tmp_path)
    steps = run.steps().to_pylist()
    assert [line["loss_scale_after"] for line in steps] == [step["scale"] for step in told]
    assert [line["loss_scale_before"] for line in steps[1:]] == [s["scale"] for s in told[:-1]]
    assert [line["skipped"] for line in steps] == [not step["applied"] for step in told]
    assert [line["found_inf"] for line in steps] == [i == BROKEN for i in range(len(steps))]
    assert [line["lr"] for line in steps] == [1e-3] * len(steps)
    norms = [step["norm"] for step in told]
    assert [line["grad_norm"] for line in steps] == pytest.approx(norms, rel=1e-6)

    rows = run.tensors(slot="3:grad_output" if how == "loop" else "net.3:grad_output")
    assert rows["step"].to_pylist() == list(range(len(steps)))
    assert rows["loss_scale"].to_pylist() == [line["loss_scale_before"] for line in steps]
    assert rows["numel"].to_pylist() == [8 * 80 * micro_batches * ranks] * len(steps)
    unseen = [event["note"] for event in run.events() if event["kind"] == "unseen"]
    assert any("DeepSpeed" in note for note in unseen)
