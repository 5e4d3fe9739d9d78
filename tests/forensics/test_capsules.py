import json
import math
from pathlib import Path

import pytest
import torch
from planted import (
    Linear,
    NaiveSoftmax,
    Raising,
    Trap,
    bad_datum,
    batches,
    fit,
    fp16,
    model,
    too_large,
)

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.diagnose import Finding
from numwatch.errors import NumwatchError
from numwatch.record import RecordError
from numwatch.record.capsule import Capsule, load_capsule
from numwatch.reproduce import DIFFERS, SAME, reproduce
from numwatch.restore import restore

SCRIPT = Path(__file__).parent / "make_planted.py"


def outcomes(found):
    return {one.name: one.outcome for one in found.compared}


def test_nonfinite_loss_under_bf16_comes_out_bit_for_bit(tmp_path):
    fit(Linear(), tmp_path, batches(too_large), precision="bf16-mixed")
    capsule = load_capsule(tmp_path)
    assert (capsule.facts["step"], capsule.facts["reason"]) == (3, "loss")
    assert capsule.facts["autocast"] == "bfloat16"
    assert math.isnan(capsule.number("loss"))
    assert not capsule.notes
    found = reproduce(tmp_path, f"{SCRIPT}:linear")
    assert outcomes(found) == dict.fromkeys(("loss", "gradient norm", "first bad operation"), SAME)
    assert found.origin.phase == "forward"
    assert found.origin.module == "body.0"


def test_collapse_of_a_loss_scale_comes_out_bit_for_bit(tmp_path):
    fit(Trap(), tmp_path, batches(), steps=14, **fp16(65536.0))
    capsule = load_capsule(tmp_path)
    assert (capsule.facts["step"], capsule.facts["reason"]) == (9, "collapse")
    assert capsule.number("loss_scale") == 65536.0 / 2**9
    assert math.isfinite(capsule.number("loss"))
    found = reproduce(tmp_path, f"{SCRIPT}:trap")
    assert outcomes(found) == dict.fromkeys(("loss", "gradient norm", "first bad operation"), SAME)
    # The loss knows of dropout: other random numbers, another loss.
    state = torch.load(capsule.path / "state.pt", weights_only=True)
    state["random"]["cpu"] = torch.Generator().manual_seed(99).get_state()
    torch.save(state, capsule.path / "state.pt")
    assert outcomes(reproduce(tmp_path, f"{SCRIPT}:trap"))["loss"] == DIFFERS


def test_exception_in_a_step_comes_out_bit_for_bit(tmp_path):
    with pytest.raises(ValueError, match=r"loss 0\."):
        fit(Raising(), tmp_path, batches(), **fp16())
    capsule = load_capsule(tmp_path)
    assert (capsule.facts["step"], capsule.facts["reason"]) == (3, "exception")
    assert capsule.facts["exception"].startswith("ValueError: loss 0.")
    assert outcomes(reproduce(tmp_path, f"{SCRIPT}:raising")) == {"exception": SAME}


def test_buffers_that_no_state_dictionary_holds_come_along(tmp_path):
    fit(model(NaiveSoftmax), tmp_path, **fp16())
    assert reproduce(tmp_path, f"{SCRIPT}:naive").same


@pytest.mark.parametrize(
    "other", [torch.zeros(3, 5), torch.zeros(2, 2).to_sparse(), torch.zeros(()).to_sparse()]
)
def test_buffers_that_do_not_fit_are_named(other, tmp_path):
    fit(model(NaiveSoftmax), tmp_path, **fp16())
    path = load_capsule(tmp_path).path / "state.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "buffers": dict.fromkeys(state["buffers"], other)}, path)
    with pytest.raises(NumwatchError, match=r"not the run's: buffer blocks\.1\.attn\.calls"):
        reproduce(tmp_path, f"{SCRIPT}:naive")


def test_weights_that_do_not_fit_are_named(tmp_path):
    fit(Linear(), tmp_path, batches(bad_datum), **fp16())
    path = load_capsule(tmp_path).path / "state.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "module": {**state["module"], "body.0.weight": torch.zeros(2)}}, path)
    with pytest.raises(NumwatchError, match=r"size mismatch for body\.0\.weight") as raised:
        reproduce(tmp_path, f"{SCRIPT}:linear")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("precision", "origin"),
    [
        # Adam's eps is 0 in FP16; a bias before BatchNorm has no gradient: its update was 0 / 0.
        ("16-true", ("parameter", "body.0.bias")),
        ("bf16-true", ("data", "batch['x']")),
        ("32-true", ("data", "batch['x']")),
    ],
)
def test_true_precisions(precision, origin, tmp_path):
    fit(Linear(), tmp_path, batches(bad_datum), precision=precision)
    found = reproduce(tmp_path, f"{SCRIPT}:linear")
    assert found.same
    assert (found.origin.phase, found.origin.tensor) == origin


def test_first_failure_is_kept(tmp_path):
    fit(Linear(), tmp_path, batches(bad_datum, 2), **fp16())
    fit(Linear(), tmp_path, batches(too_large, 4), precision="bf16-mixed")
    assert load_capsule(tmp_path).facts["step"] == 2


def test_healthy_runs_and_searches_for_a_scale_keep_none(tmp_path):
    fit(Linear(), tmp_path / "a", batches(), precision="bf16-mixed")
    fit(Linear(), tmp_path / "b", batches(), steps=14, **fp16(2.0**127))
    for name in "ab":
        with pytest.raises(RecordError, match=r"no capsule in .*capsule_gb=0"):
            load_capsule(tmp_path / name)


def monitored(tmp, **options):
    monitor = NumericsMonitor(summary=False, strict=True, dir=str(tmp), **options)
    fit(Linear(), tmp, batches(bad_datum), monitor=False, callbacks=[monitor], **fp16())


def test_capsule_can_be_switched_off(tmp_path):
    monitored(tmp_path, capsule_gb=0)
    assert not (tmp_path / "numwatch" / "capsule").exists()
    with pytest.raises(NumwatchError, match="capsule_gb must be a number of at least 0"):
        NumericsMonitor(capsule_gb=-1)


def test_what_is_too_large_is_left_out_and_told(tmp_path):
    monitored(tmp_path, capsule_gb=5e-6)  # 5 kB: Adam's state and the weights take 2.6 kB
    capsule = load_capsule(tmp_path)
    assert "optimizers" not in capsule.state
    assert "optimizers not kept: with it the capsule takes" in capsule.notes[0]
    assert "the limit is capsule_gb=5e-06" in capsule.notes[0]
    with pytest.raises(NumwatchError, match="lacks the module: optimizers not kept"):
        reproduce(tmp_path, f"{SCRIPT}:linear")


def test_full_disk_harms_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("torch.save", full)
    monitored(tmp_path)
    record = tmp_path / "numwatch"
    events = [json.loads(line) for line in (record / "events.jsonl").read_text().splitlines()]
    (told,) = [event for event in events if event["kind"] == "capsule"]
    assert "no space left" in told["note"]
    assert not list(record.glob("*capsule*"))


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("nowhere.py:make", "--script names a file and a function"),
        (f"{SCRIPT}:lineal", "has no function 'lineal'; did you mean 'linear'"),
        (f"{SCRIPT}:naive", "not the run's"),
        (f"{SCRIPT}:Path", "training_step"),
    ],
)
def test_scripts_that_do_not_fit(script, text, tmp_path):
    monitored(tmp_path)
    with pytest.raises(NumwatchError, match=text):
        reproduce(tmp_path, script)


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16"])
def test_a_critical_finding_s_capsule_is_of_the_step_before_it_moves_the_weights(
    precision, tmp_path, monkeypatch
):
    critical = Finding("loss-spike", "critical", 0, None, (), "cause", "cure", "policy")
    monkeypatch.setattr("numwatch.live.diagnose", lambda _run, first: [critical])
    monitor = NumericsMonitor(
        every_n_steps=1, summary=False, strict=True, dir=str(tmp_path), stop_on="critical"
    )
    options = fp16(1024.0) if precision == "fp16" else {"precision": precision}
    trainer, _ = fit(
        Linear(), tmp_path, batches(n=4), steps=12, monitor=False, callbacks=[monitor], **options
    )
    assert trainer.global_step == 5
    assert load_capsule(tmp_path).facts["reason"] == "critical"
    found = reproduce(tmp_path, f"{SCRIPT}:linear")
    assert {name: outcomes(found)[name] for name in ("loss", "gradient norm")} == dict.fromkeys(
        ("loss", "gradient norm"), SAME
    )


def test_a_resumed_run_says_that_an_earlier_attempt_s_capsule_is_there(tmp_path):
    fit(Linear(), tmp_path, batches(too_large), precision="bf16-mixed")
    fit(Linear(), tmp_path, batches(too_large), precision="bf16-mixed")
    kept = [event for event in numwatch.open_run(tmp_path).events() if event["kind"] == "capsule"]
    assert kept[-1]["note"] == "not kept: one of an earlier attempt is there"


def test_names_that_end_in_a_wrapper_s_are_found_again(tmp_path):
    made = torch.nn.ModuleDict({"my_orig_mod": torch.nn.Linear(2, 2)})
    kept = {f"_orig_mod.{name}": torch.ones_like(t) for name, t in made.state_dict().items()}
    restore(made, Capsule(tmp_path, {}, {"module": kept}), torch.device("cpu"))
    assert all((t == 1).all() for t in made.state_dict().values())
