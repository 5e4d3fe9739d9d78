import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import numwatch
from numwatch.demo import PRECISIONS, run_demo
from numwatch.demo.precision import precision_of
from numwatch.errors import NumwatchError

ALL = ("16-mixed", "bf16-mixed", "16-true", "bf16-true", "fp8", "32-true")


def test_the_precisions_are_those_of_the_issue():
    assert tuple(PRECISIONS) == ALL


def test_16_mixed_on_a_cpu_is_fp16_with_a_scaler():
    (plugin,) = PRECISIONS["16-mixed"].trainer("cpu")["plugins"]
    assert (plugin.precision, plugin.device) == ("16-mixed", "cpu")
    assert plugin.scaler.is_enabled()
    with plugin.forward_context():
        assert torch.get_autocast_dtype("cpu") is torch.float16


def test_16_true_divides_by_nothing_that_fp16_flushes():
    weights = [torch.nn.Parameter(torch.zeros(2))]
    eps = {p: PRECISIONS[p].optimizer(weights).param_groups[0].get("eps") for p in ALL}
    assert torch.tensor(1e-8, dtype=torch.float16) == 0
    assert eps.pop("16-true") is None
    assert set(eps.values()) == {1e-8}


def test_an_unknown_precision_names_near_ones():
    with pytest.raises(NumwatchError) as error:
        precision_of("fp16-mixed")
    assert str(error.value) == (
        f"precision is one of {', '.join(ALL)}; got 'fp16-mixed'"
        "; did you mean 'bf16-mixed' or '16-mixed' or 'bf16-true'?"
    )


def test_bad_arguments_are_one_line(tmp_path):
    with pytest.raises(NumwatchError, match=r"precision is one of .* got '8'"):
        run_demo("8", out=tmp_path)
    with pytest.raises(NumwatchError, match="device is one of auto, cpu, cuda; got 'gpu'"):
        run_demo(device="gpu", out=tmp_path)
    with pytest.raises(NumwatchError, match="steps is a positive number; got 0"):
        run_demo(steps=0, out=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NumwatchError, match=r"must be a directory; .* is a file"):
        run_demo(out=tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_cuda_without_a_device_is_one_line(tmp_path):
    with pytest.raises(NumwatchError, match="torch finds none; use cpu or auto"):
        run_demo(device="cuda", out=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ALL)
def test_six_steps_in_each_precision(precision, tmp_path, capsys):
    out = tmp_path / "run"
    run_demo(precision, steps=6, device="cpu", out=out)
    printed = capsys.readouterr().out
    assert f"numwatch report {out}" in printed
    assert f"tensorboard --logdir {out}" in printed
    steps = numwatch.open_run(out).steps()
    losses = steps["loss"].to_pylist()
    assert steps["step"].to_pylist() == list(range(6))
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert set(steps["epoch"].to_pylist()) == {0, 1, 2}
    # A GradScaler is at work in 16-mixed alone.
    assert set(steps["loss_scale_before"].to_pylist()) == {
        65536.0 if precision == "16-mixed" else 1.0
    }
    formats = {
        slot.format for slot in numwatch.open_run(out).slots.values() if slot.role == "input"
    }
    computed = {"16": "fp16", "bf16": "bf16", "32": "fp32"}.get(precision.split("-")[0])
    assert formats == ({computed} if computed else {"e4m3", "bf16"})


@pytest.mark.slow
def test_a_second_run_supersedes_the_first(tmp_path, capsys):
    for steps in (6, 3):
        run_demo("32-true", steps=steps, device="cpu", out=tmp_path)
    assert numwatch.open_run(tmp_path).steps()["step"].to_pylist() == [0, 1, 2]
    events = EventAccumulator(str(tmp_path)).Reload()
    epochs = [event.step for event in events.Scalars("val_loss")]
    assert len(epochs) == len(set(epochs)) == 3
    assert "3 steps in 32-true on cpu" in capsys.readouterr().out
