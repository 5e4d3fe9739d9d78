"""What a run is told of its own diagnosis: once, and in time to stop."""

import logging
import math

import pytest
import torch
from test_monitor import batches, classifier, fit, trainer_of

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.diagnose import Finding
from numwatch.errors import NumwatchError
from numwatch.live import ALARMS, LiveDiagnosis


def poisoned(step):
    """A module whose loss is NaN from a step on: log of a negative number."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return loss if batch_idx < step else torch.log(-loss)

    return classifier(training_step=training_step)


def events(directory, kind):
    return [event for event in numwatch.open_run(directory).events() if event["kind"] == kind]


@pytest.mark.parametrize("stop_on", ["critical", None])
def test_a_critical_finding_is_told_once_and_stops_the_fit_if_asked(stop_on, tmp_path, capsys):
    monitor = NumericsMonitor(dir=str(tmp_path), strict=True, stop_on=stop_on)
    trainer = fit(poisoned(60), callbacks=[monitor], n=200, tmp=tmp_path)
    out = capsys.readouterr().out
    (event,) = events(tmp_path, "finding")
    assert (event["rule"], event["since"]) == ("nan-in-loss", 60)
    told = [line for line in out.splitlines() if line.startswith("numwatch: critical")]
    assert len(told) == 1
    assert "test_live_diagnosis.py" in told[0]
    assert (tmp_path / "numwatch" / "capsule").is_dir()
    if stop_on:
        assert 60 < trainer.global_step < 200
    else:
        assert trainer.global_step == 200
    assert "diagnosis   critical from step 60" in out


def test_without_summaries_it_is_a_log_record(tmp_path, caplog):
    monitor = NumericsMonitor(dir=str(tmp_path), strict=True, summary=False)
    with caplog.at_level(logging.WARNING, "numwatch"):
        fit(poisoned(10), callbacks=[monitor], n=60, tmp=tmp_path)
    (record,) = [record for record in caplog.records if record.name == "numwatch"]
    assert "critical from step 10" in record.getMessage()


def test_what_is_critical_without_an_alarm_is_told_at_the_end_at_the_latest(
    tmp_path, monkeypatch, caplog
):
    """Updates too small for BF16 raise no alarm, and no epoch could afford to look."""
    from torch.optim import SGD

    monkeypatch.setattr(LiveDiagnosis, "affordable", lambda _self: False)
    module = classifier(configure_optimizers=lambda self: SGD(self.parameters(), lr=3e-7))
    monitor = NumericsMonitor(
        every_n_steps=1, exclude=["body.0*"], dir=str(tmp_path), strict=True, summary=False
    )
    with caplog.at_level(logging.WARNING, "numwatch"):
        fit(module, callbacks=[monitor], n=20, tmp=tmp_path, precision="bf16-true")
    (record,) = [record for record in caplog.records if record.name == "numwatch"]
    assert "below the resolution" in record.getMessage()


def test_a_healthy_run_is_not_stopped_and_keeps_no_capsule(tmp_path, capsys):
    monitor = NumericsMonitor(dir=str(tmp_path), strict=True, stop_on="critical")
    trainer = fit(classifier(), callbacks=[monitor], n=40, tmp=tmp_path, max_epochs=2)
    assert trainer.global_step == 80
    assert "critical" not in capsys.readouterr().out
    assert not (tmp_path / "numwatch" / "capsule").exists()


def test_a_critical_finding_without_a_failed_step_keeps_the_next_one(tmp_path):
    """Updates too small for BF16: no step fails, and the fit ends with a capsule all the same."""
    from torch.optim import SGD

    module = classifier(configure_optimizers=lambda self: SGD(self.parameters(), lr=3e-7))
    # A LayerNorm's bias starts at 0, where BF16 holds any update.
    monitor = NumericsMonitor(
        every_n_steps=1, exclude=["body.0*"], dir=str(tmp_path), strict=True, stop_on="critical"
    )
    trainer = fit(
        module, callbacks=[monitor], n=20, tmp=tmp_path, max_epochs=3, precision="bf16-true"
    )
    assert trainer.global_step == 21
    assert numwatch.load_capsule(tmp_path).facts["reason"] == "critical"


def test_a_run_that_dies_tells_why(tmp_path, capsys):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        if batch_idx == 30:
            raise RuntimeError("the user's own check")
        return loss * math.nan if batch_idx > 20 else loss

    monitor = NumericsMonitor(dir=str(tmp_path), strict=True)
    with pytest.raises(RuntimeError, match="own check"):
        fit(classifier(training_step=training_step), callbacks=[monitor], n=40, tmp=tmp_path)
    assert "diagnosis   critical from step 21" in capsys.readouterr().out


def test_a_plain_loop_asks_whether_to_stop(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taken = 0
    with numwatch.watch(
        model, optimizer, dir=tmp_path, summary=False, strict=True, stop_on="critical"
    ) as watch:
        for step in range(300):
            optimizer.zero_grad()
            loss = model(torch.ones(8, 4)).square().mean() * (math.nan if step >= 5 else 1.0)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
            taken += 1
            if watch.stopping:
                break
    assert 5 < taken < 300


def test_live_diagnosis_is_bitwise_harmless(tmp_path):
    bare, told = classifier(), classifier()
    torch.manual_seed(1)
    trainer_of(tmp=tmp_path, max_epochs=2).fit(bare, batches())
    monitor = NumericsMonitor(dir=str(tmp_path), strict=True, stop_on="critical")
    fit(told, callbacks=[monitor], tmp=tmp_path, max_epochs=2)
    for one, other in zip(bare.parameters(), told.parameters(), strict=True):
        assert torch.equal(one, other)


def test_unknown_stop_on_is_refused_at_once():
    with pytest.raises(NumwatchError, match="stop_on is None or \"critical\"; got 'warning'"):
        NumericsMonitor(stop_on="warning")


def test_alarms_beyond_the_first_wait_until_they_are_affordable(monkeypatch):
    live = LiveDiagnosis()
    monkeypatch.setattr(live, "affordable", lambda: False)
    assert [live.alarm() for _ in range(ALARMS + 2)] == [True] * ALARMS + [False] * 2
    monkeypatch.setattr(live, "affordable", lambda: True)
    assert live.alarm()


def finding(rule, severity, step=3, consequences=()):
    return Finding(rule, severity, step, None, (), rule, rule, "policy", consequences=consequences)


def test_a_critical_consequence_of_a_warning_is_told_once(tmp_path, monkeypatch):
    worse = finding("loss-spike", "critical")
    overflow = finding("forward-overflow", "critical", consequences=(worse,))
    found = [finding("activation-growth", "warning", 0, (overflow,))]
    monkeypatch.setattr("numwatch.live.diagnose", lambda _run, first: found)
    fit(classifier(), callbacks=[NumericsMonitor(dir=str(tmp_path), summary=False)], tmp=tmp_path)
    live = LiveDiagnosis()
    run = numwatch.open_run(tmp_path)
    assert [each.rule for each in live.look(run, 0, 7)] == ["forward-overflow"]
    assert live.look(run, 0, 8) == []
    assert live.critical


def test_a_record_that_grows_too_large_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("numwatch.live.ROWS", 10)
    monitor = NumericsMonitor(every_n_steps=1, dir=str(tmp_path), strict=True)
    fit(poisoned(5), callbacks=[monitor], tmp=tmp_path, max_epochs=2)
    out = capsys.readouterr().out
    assert out.count("too large to be diagnosed beside the run") == 1
    assert "diagnosis  " not in out


def test_a_failure_in_the_last_steps_is_told_without_summaries(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "numwatch"):
        model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with numwatch.watch(model, optimizer, dir=tmp_path, summary=False, strict=True) as watch:
            for step in range(40):
                optimizer.zero_grad()
                loss = model(torch.ones(8, 4)).square().mean() * (math.nan if step >= 38 else 1.0)
                loss.backward()
                optimizer.step()
                watch.step(loss=loss)
    (record,) = [record for record in caplog.records if record.name == "numwatch"]
    assert "critical from step 38" in record.getMessage()


def test_a_nan_loss_that_the_scaler_skips_is_an_alarm_too(tmp_path, capsys):
    def training_step(self, batch, batch_idx):
        return self.loss(batch) * (math.nan if batch_idx >= 10 else 1.0)

    monitor = NumericsMonitor(every_n_steps=1, dir=str(tmp_path), strict=True, stop_on="critical")
    model = classifier(training_step=training_step)
    trainer = fit(
        model, callbacks=[monitor], n=60, tmp=tmp_path, precision="16-mixed", scale=1024.0
    )
    assert 10 < trainer.global_step < 20
    assert events(tmp_path, "skip")
    assert "critical from step 10" in capsys.readouterr().out


def test_a_resumed_run_is_not_stopped_by_what_its_first_attempt_died_of(tmp_path):
    def training_step(self, batch, batch_idx):
        return self.loss(batch) * (math.nan if self.poison and self.global_step > 8 else 1.0)

    def monitor():
        return NumericsMonitor(every_n_steps=1, strict=True, summary=False, stop_on="critical")

    checkpoint = tmp_path / "checkpoint"
    ill = classifier(training_step=training_step, poison=True)
    trainer = fit(ill, callbacks=[monitor()], n=8, tmp=tmp_path, max_epochs=3)
    assert trainer.global_step < 24
    trainer.save_checkpoint(checkpoint)
    well = classifier(training_step=training_step, poison=False)
    well.on_load_checkpoint = lambda saved: saved["state_dict"].update(classifier().state_dict())
    trainer = fit(
        well, callbacks=[monitor()], n=8, tmp=tmp_path, max_epochs=5, ckpt_path=checkpoint
    )
    assert trainer.current_epoch == 5
    assert all(parameter.isfinite().all() for parameter in well.parameters())


def test_a_resumed_run_is_told_of_its_own_failure_of_the_same_kind(tmp_path):
    """The first attempt met a NaN at step 3 and got over it; the second one's is its own."""

    def training_step(self, batch, batch_idx):
        ill = self.global_step == 3 or self.global_step >= 20
        return self.loss(batch) * (math.nan if ill else 1.0)

    def monitor():
        return NumericsMonitor(every_n_steps=1, strict=True, summary=False, stop_on="critical")

    def configure_gradient_clipping(self, *_arguments, **_options):
        for parameter in self.parameters():
            parameter.grad.nan_to_num_(0.0)

    own = {
        "training_step": training_step,
        "configure_gradient_clipping": configure_gradient_clipping,
    }
    checkpoint = tmp_path / "checkpoint"
    quiet = NumericsMonitor(every_n_steps=1, strict=True, summary=False)
    trainer = fit(classifier(**own), callbacks=[quiet], n=8, tmp=tmp_path)
    trainer.save_checkpoint(checkpoint)
    trainer = fit(
        classifier(**own),
        callbacks=[monitor()],
        n=8,
        tmp=tmp_path,
        max_epochs=8,
        ckpt_path=checkpoint,
    )
    assert 20 <= trainer.global_step < 64


def test_an_exception_is_named(tmp_path):
    def training_step(self, batch, batch_idx):
        if batch_idx == 5:
            raise ValueError("boom\nand more")
        return self.loss(batch)

    monitor = NumericsMonitor(dir=str(tmp_path), strict=True, summary=False)
    with pytest.raises(ValueError, match="boom"):
        fit(classifier(training_step=training_step), callbacks=[monitor], n=8, tmp=tmp_path)
    (found,) = (f for f in numwatch.diagnose(tmp_path) if f.rule == "ended-by-exception")
    assert found.cause == "ValueError: boom ended the run at step 5"
    assert found.severity == "info"


def test_an_exception_in_the_first_step_is_named(tmp_path):
    def training_step(self, batch, batch_idx):
        raise ValueError("boom")

    monitor = NumericsMonitor(dir=str(tmp_path), strict=True, summary=False)
    with pytest.raises(ValueError, match="boom"):
        fit(classifier(training_step=training_step), callbacks=[monitor], n=8, tmp=tmp_path)
    (found,) = numwatch.diagnose(tmp_path)
    assert (found.rule, "ValueError: boom" in found.cause) == ("no-steps", True)
