import copy
import importlib
import json
import warnings
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

import numwatch
from numwatch.callbacks import NumericsMonitor

NAMESPACES = ("pytorch_lightning", "lightning.pytorch")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")


def classifier(namespace="pytorch_lightning", **changes):
    """A module that learns to tell tokens apart, as a LightningModule of either namespace."""
    pl = importlib.import_module(namespace)

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 16)
            self.body = nn.Sequential(
                nn.LayerNorm(16), nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Dropout(0.2)
            )
            self.head = nn.Linear(32, 20)

        def training_step(self, batch, batch_idx):
            self.log("step_loss", 0.0)
            return self.loss(batch)

        def loss(self, batch):
            logits = self.head(self.body(self.embed(batch)))
            return nn.functional.cross_entropy(logits.flatten(0, 1), batch.flatten())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for name, value in changes.items():
        setattr(Classifier, name, value)
    torch.manual_seed(0)
    return Classifier()


def batches(n=8):
    generator = torch.Generator().manual_seed(3)
    return DataLoader(torch.randint(0, 20, (4 * n, 6), generator=generator), batch_size=4)


def trainer_of(
    precision="32-true", tmp="", namespace="pytorch_lightning", scale=2.0**16, **options
):
    pl = importlib.import_module(namespace)
    if precision == "16-mixed":
        plugins = importlib.import_module(f"{namespace}.plugins")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        options["plugins"] = plugins.MixedPrecision("16-mixed", "cpu", scaler)
    else:
        options["precision"] = precision
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=str(tmp),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**defaults, **options},
    )


def fit(model, *, callbacks=(), n=8, ckpt_path=None, **options):
    torch.manual_seed(1)
    trainer = trainer_of(callbacks=list(callbacks), **options)
    trainer.fit(model, batches(n), ckpt_path=ckpt_path)
    return trainer


def watched(model, tmp, *, monitor=None, **options):
    """Fits under a monitor and returns the record."""
    monitor = monitor or NumericsMonitor(every_n_steps=1, strict=True, summary=False)
    fit(model, callbacks=[monitor], tmp=tmp, **options)
    return numwatch.open_run(monitor.directory)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_under_the_monitor_is_bitwise_the_same(precision, tmp_path):
    bare, monitored = classifier(), classifier()
    fit(bare, precision=precision, tmp=tmp_path)
    run = watched(monitored, tmp_path, precision=precision)
    assert run.steps().num_rows == 8
    theirs, ours = bare.state_dict(), monitored.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_both_namespaces(namespace, precision, tmp_path):
    model = classifier(namespace)
    run = watched(model, tmp_path, namespace=namespace, precision=precision)
    assert run.steps().num_rows == 8
    # The attempt says the precision as its Trainer names it.
    assert run.attempts[0]["precision"] == precision
    assert {slot.format for slot in run.slots.values() if slot.module == "head"} == {
        "fp16" if precision == "16-mixed" else "bf16"
    }


def test_loss_scale_from_2_to_the_24_backs_off_as_without_numwatch(tmp_path):
    class ScaleOf(importlib.import_module("pytorch_lightning").Callback):
        def __init__(self):
            self.scales = []

        def on_train_batch_end(self, trainer, *_):
            self.scales.append(trainer.scaler.get_scale())

    bare = ScaleOf()
    fit(classifier(), callbacks=[bare], precision="16-mixed", scale=2.0**24, n=20, tmp=tmp_path)
    steps = (
        watched(classifier(), tmp_path, precision="16-mixed", scale=2.0**24, n=20)
        .steps()
        .to_pydict()
    )
    assert steps["loss_scale_after"] == bare.scales
    assert steps["loss_scale_before"] == [2.0**24, *bare.scales[:-1]]
    assert bare.scales[-1] < 2.0**24
    fell = [a < b for a, b in zip(bare.scales, [2.0**24, *bare.scales], strict=False)]
    assert steps["skipped"] == fell == steps["found_inf"]


def test_skipped_steps_and_backoffs_are_events_with_the_slots_that_overflowed(tmp_path):
    run = watched(classifier(), tmp_path, precision="16-mixed", scale=2.0**24, n=4)
    at_first = [event for event in run.events() if event["step"] == 0]
    first = [event for event in at_first if event["kind"] not in ("memory", "origin")]
    assert [event["kind"] for event in first] == [
        "start",
        "overflow",
        "skip",
        "backoff",
        "nonfinite",
    ]
    assert "head:grad_output" in first[-1]["slots"]


def test_accumulation_window_is_one_step_in_the_scaled_domain(tmp_path):
    bare, monitored = classifier(), classifier()
    options = {"precision": "16-mixed", "accumulate_grad_batches": 3, "tmp": tmp_path}
    fit(bare, **options)
    run = watched(monitored, options.pop("tmp"), **options)
    assert all(
        torch.equal(a, b) for a, b in zip(bare.parameters(), monitored.parameters(), strict=True)
    )
    # Eight batches in windows of three, the last one cut short by the epoch's end.
    assert run.steps()["step"].to_pylist() == [0, 1, 2]
    rows = run.tensors(slot="head:input").to_pydict()
    assert rows["numel"] == [3 * 4 * 6 * 32, 3 * 4 * 6 * 32, 2 * 4 * 6 * 32]
    gradients = run.tensors(slot="head:grad_output").to_pydict()
    assert set(gradients["loss_scale"]) == {2.0**16}
    # d loss / d logits sums to zero over classes and its amax is at most scale / (N tokens).
    assert all(2.0**16 / 24 / 3 / 20 < amax <= 2.0**16 / 24 / 3 for amax in gradients["amax"])


def test_unscaled_figures_agree_with_the_same_step_in_fp32(tmp_path):
    def rows(precision, name):
        options = {"precision": precision, "n": 1, "tmp": tmp_path / name}
        monitor = NumericsMonitor(every_n_steps=1, strict=True, summary=False)
        return watched(classifier(), options.pop("tmp"), monitor=monitor, **options)

    fp16, fp32 = rows("16-mixed", "a"), rows("32-true", "b")
    for role in ("grad_output", "grad_input", "grad_weight"):
        ours = fp16.tensors(slot=f"head:{role}").to_pydict()
        truth = fp32.tensors(slot=f"head:{role}").to_pydict()
        assert ours["amax"][0] / ours["loss_scale"][0] == pytest.approx(truth["amax"][0], rel=0.01)
        assert ours["numel"] == truth["numel"]
    norm = fp16.steps()["grad_norm"][0].as_py()
    assert norm == pytest.approx(fp32.steps()["grad_norm"][0].as_py(), rel=0.01)


def test_manual_optimization_with_two_optimizers(tmp_path):
    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.embed.parameters(), lr=0.1),
            torch.optim.SGD([*self.body.parameters(), *self.head.parameters()], lr=0.1),
        ]

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss.detach()

    changes = {
        "automatic_optimization": False,
        "configure_optimizers": configure_optimizers,
        "training_step": training_step,
    }
    bare, monitored = classifier(**changes), classifier(**changes)
    fit(bare, tmp=tmp_path, precision="16-mixed")
    run = watched(monitored, tmp_path, precision="16-mixed")
    assert all(
        torch.equal(a, b) for a, b in zip(bare.parameters(), monitored.parameters(), strict=True)
    )
    steps = run.steps().to_pydict()
    assert steps["step"] == [2 * batch for batch in range(8)]
    assert not any(steps["skipped"])
    norms = [p.grad.norm() for p in monitored.parameters() if p.grad is not None]
    assert steps["grad_norm"][-1] == pytest.approx(torch.stack(norms).norm().item(), rel=1e-5)


def test_training_step_that_returns_none_is_a_skipped_step_without_found_inf(tmp_path):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else self.loss(batch)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*returned `None`")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        run = watched(classifier(training_step=training_step), tmp_path, precision="16-mixed", n=3)
    steps = run.steps().to_pydict()
    assert steps["skipped"] == [False, True, False]
    assert steps["loss"][1] is None
    assert steps["found_inf"] == [False, False, False]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_two_epochs_then_resume_give_one_joined_record(tmp_path):
    pl = importlib.import_module("pytorch_lightning")
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    options = {"precision": "16-mixed", "tmp": tmp_path, "enable_checkpointing": True, "n": 5}
    first = NumericsMonitor(every_n_steps=1, summary=False, strict=True)
    trainer = fit(classifier(), callbacks=[first], max_epochs=2, logger=logger, **options)
    checkpoint = trainer.checkpoint_callback.best_model_path
    state = torch.load(checkpoint, weights_only=True)
    assert any("NumericsMonitor" in key for key in state["callbacks"])
    second = NumericsMonitor(every_n_steps=1, summary=False, strict=True)
    fit(
        classifier(),
        callbacks=[second],
        max_epochs=4,
        logger=pl.loggers.TensorBoardLogger(tmp_path),
        ckpt_path=checkpoint,
        **options,
    )
    assert second.directory == first.directory
    run = numwatch.open_run(first.directory)
    steps = run.steps().to_pydict()
    assert steps["step"] == list(range(20))
    assert steps["attempt"] == [0] * 10 + [1] * 10
    assert run.tensors(slot="head:weight")["step"].to_pylist() == list(range(20))


def test_without_logger_the_record_is_in_the_root_dir_and_dir_overrides_it(tmp_path):
    watched(classifier(), tmp_path)
    assert (tmp_path / "numwatch").is_dir()
    monitor = NumericsMonitor(dir=str(tmp_path / "mine"), summary=False)
    watched(classifier(), tmp_path, monitor=monitor)
    assert monitor.directory == tmp_path / "mine" / "numwatch"


def test_tensorboard_logger_gets_charts_and_another_logger_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pl = importlib.import_module("pytorch_lightning")
    loggers = [pl.loggers.TensorBoardLogger(tmp_path), pl.loggers.CSVLogger(tmp_path)]
    run = watched(classifier(), tmp_path, logger=loggers, precision="16-mixed")
    assert run.path == Path(loggers[0].log_dir) / "numwatch"
    events = EventAccumulator(loggers[0].log_dir).Reload()
    tags = events.Tags()
    scale = events.Scalars("numwatch/loss_scale_log2")
    assert [(point.step, point.value) for point in scale] == [(step, 16.0) for step in range(8)]
    assert len(tags["histograms"]) > 0
    columns = (Path(loggers[1].log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "numwatch/loss_scale_log2" in columns


def test_hooks_are_gone_after_the_fit(tmp_path, count_hooks):
    model = classifier()
    watched(model, tmp_path)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_run_leaves_no_hooks_and_a_record_up_to_the_failure(error, tmp_path, count_hooks):
    def training_step(self, batch, batch_idx):
        if batch_idx == 5:
            raise error("the user's")
        return self.loss(batch)

    model = classifier(training_step=training_step)
    monitor = NumericsMonitor(every_n_steps=1, summary=False)
    with pytest.raises((error, SystemExit)):
        fit(model, callbacks=[monitor], tmp=tmp_path)
    assert count_hooks(model) == 0
    assert numwatch.open_run(monitor.directory).steps()["step"].to_pylist() == [0, 1, 2, 3, 4]


def test_internal_error_does_not_stop_the_fit(tmp_path, monkeypatch, count_hooks):
    def fail(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("numwatch.record.Recorder.write", fail)
    bare, model = classifier(), classifier()
    fit(bare, tmp=tmp_path)
    with pytest.warns(RuntimeWarning, match="numwatch stopped watching.*no space left") as caught:
        fit(model, callbacks=[NumericsMonitor(every_n_steps=1, summary=False)], tmp=tmp_path)
    assert len([w for w in caught if "numwatch" in str(w.message)]) == 1
    assert all(
        torch.equal(a, b) for a, b in zip(bare.parameters(), model.parameters(), strict=True)
    )
    assert count_hooks(model) == 0
    with pytest.raises(OSError, match="no space left"):
        watched(classifier(), tmp_path)


def test_unwritable_directory_warns_and_the_fit_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    monitor = NumericsMonitor(dir=str(tmp_path / "file" / "below"), summary=False)
    with pytest.warns(RuntimeWarning, match="numwatch stopped watching"):
        trainer = fit(classifier(), callbacks=[monitor], tmp=tmp_path)
    assert trainer.global_step == 8


def test_monitor_is_copied_and_its_model_averaged(tmp_path):
    pl = importlib.import_module("pytorch_lightning")
    if not hasattr(pl.callbacks, "WeightAveraging"):
        pytest.skip(f"Lightning {pl.__version__} averages no weights")
    averaging = pl.callbacks.WeightAveraging()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*in-place.*")
        run = watched_with(classifier(), tmp_path, [averaging])
    assert run.steps().num_rows == 8
    copy.deepcopy(NumericsMonitor())


def watched_with(model, tmp, callbacks):
    monitor = NumericsMonitor(every_n_steps=1, strict=True, summary=False)
    fit(model, callbacks=[monitor, *callbacks], tmp=tmp)
    return numwatch.open_run(monitor.directory)


def test_fit_twice_watches_twice(tmp_path, count_hooks):
    model = classifier()
    monitor = NumericsMonitor(every_n_steps=1, strict=True, summary=False)
    trainer = trainer_of(callbacks=[monitor], tmp=tmp_path)
    trainer.fit(model, batches())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, batches())
    assert numwatch.open_run(monitor.directory).steps()["step"].to_pylist() == list(range(16))
    assert count_hooks(model) == 0


def test_summaries_are_printed_at_each_epochs_end_and_at_the_end(tmp_path, capsys):
    monitor = NumericsMonitor(every_n_steps=1, strict=True)
    fit(classifier(), callbacks=[monitor], precision="16-mixed", max_epochs=2, tmp=tmp_path)
    printed = capsys.readouterr().out
    headers = [line for line in printed.splitlines() if line.startswith("numwatch")]
    assert len(headers) == 3
    assert "epoch 0" in headers[0]
    assert "epoch 1" in headers[1]
    assert all("16-mixed" in header and "cost" in header for header in headers)


@pytest.mark.parametrize("name", ["every_n_steps", "amax_every_n_steps"])
def test_impossible_cadence_is_refused_at_once(name):
    with pytest.raises(numwatch.NumwatchError, match=name):
        NumericsMonitor(**{name: -1})


def test_steps_hold_lr_epoch_batch_and_times(tmp_path):
    steps = watched(classifier(), tmp_path, max_epochs=2, n=3).steps().to_pydict()
    assert steps["lr"] == [0.1] * 6
    assert steps["epoch"] == [0, 0, 0, 1, 1, 1]
    assert steps["batch"] == [0, 1, 2, 0, 1, 2]
    times = zip(steps["step_seconds"], steps["numwatch_seconds"], strict=True)
    assert all(0 < ours < whole for whole, ours in times)


def test_arguments_and_slots_are_in_the_manifest(tmp_path):
    run = watched(classifier(), tmp_path)
    assert run.attempts[0]["arguments"]["every_n_steps"] == 1
    head = run.slots["head:input"]
    assert (head.module_class, head.shape, head.dtype) == ("Linear", (4, 6, 32), "float32")
    assert json.dumps(run.manifest, default=str)


def test_mixed_precision_plugin_of_this_test_is_real_fp16():
    plugin = trainer_of("16-mixed").precision_plugin
    assert isinstance(plugin, MixedPrecision)
    assert plugin.scaler.is_enabled()


def test_fast_dev_run_has_no_log_dir_and_is_watched_all_the_same(tmp_path):
    monitor = NumericsMonitor(every_n_steps=1, summary=False, strict=True)
    fit(classifier(), callbacks=[monitor], fast_dev_run=True, logger=True, tmp=tmp_path)
    assert numwatch.open_run(tmp_path).steps().num_rows == 1


def test_validation_within_an_accumulation_window_is_not_counted(tmp_path):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    model = classifier(validation_step=validation_step, val_dataloader=lambda self: batches(3))
    run = watched(model, tmp_path, accumulate_grad_batches=4, val_check_interval=2, n=4)
    assert run.tensors(slot="head:input")["numel"].to_pylist() == [4 * 4 * 6 * 32]


def test_two_monitors_of_different_directories(tmp_path):
    monitors = [
        NumericsMonitor(every_n_steps=1, dir=str(tmp_path / name), summary=False, strict=True)
        for name in "ab"
    ]
    fit(classifier(), callbacks=monitors, tmp=tmp_path)
    tables = [numwatch.open_run(monitor.directory).tensors() for monitor in monitors]
    assert tables[0].drop_columns(["attempt"]).equals(tables[1].drop_columns(["attempt"]))
