import importlib
import threading
import warnings

import pytest
import torch
from lightning_harness import (
    NAMESPACES,
    PRECISIONS,
    classifier,
    fit,
    manual,
    outcome,
    shadowing,
)
from torch import nn


@pytest.mark.parametrize("precision", PRECISIONS)
def test_run_with_shadows_is_bitwise_the_run_without(precision, tmp_path):
    bare, shadowed, callback = classifier(), classifier(), shadowing()
    theirs = outcome(bare, *fit(bare, tmp_path, precision=precision))
    ours = outcome(shadowed, *fit(shadowed, tmp_path, [callback], precision))
    assert ours == theirs
    assert callback.watched.shadow.fault is None
    assert callback.runs == 8
    assert theirs["callback"]["loss"] > 0
    assert theirs["state"]["body.1.num_batches_tracked"] == 8


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_agree_within_the_precisions_rounding(precision, tmp_path):
    callback = shadowing()
    fit(classifier(), tmp_path, [callback], precision)
    bound = {"32": 0.0, "16": 2.0**-10, "bf": 2.0**-7}[precision[:2]] * 40
    assert callback.watched.shadow.fault is None
    for found in callback.found:
        assert {"head:grad_output", "head:grad_weight", "body.0:grad_weight"} <= found.keys()
        assert max(shadow.relative_error for shadow in found.values()) <= bound
        assert min(shadow.cosine for shadow in found.values()) > 1 - bound - 1e-9


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_both_namespaces(namespace, tmp_path):
    callback = shadowing(namespace)
    fit(classifier(namespace), tmp_path, [callback], "16-mixed", namespace)
    assert callback.watched.shadow.fault is None
    assert callback.found[0]


def test_loss_is_divided_by_the_accumulation_as_the_runs_is(tmp_path):
    callback = shadowing()
    fit(classifier(), tmp_path, [callback], accumulate_grad_batches=2)
    assert all(s.relative_error == 0 for found in callback.found for s in found.values())


def with_step(function):
    """A module whose training_step is `function(self, batch, batch_idx, loss)`."""

    def training_step(self, batch, batch_idx):
        return function(self, batch, batch_idx, self.loss(batch, batch_idx))

    return classifier(training_step=training_step)


@pytest.mark.parametrize(
    "step",
    [
        lambda module, batch, i, loss: {"loss": loss, "more": 1},
        lambda module, batch, i, loss: loss if i % 2 else None,
        lambda module, batch, i, loss: loss * (1 + module.current_epoch + module.global_step),
        lambda module, batch, i, loss: loss * module.optimizers().param_groups[0]["lr"],
        lambda module, batch, i, loss: (module.print("x"), loss)[1],
        lambda module, batch, i, loss: loss + len(module.trainer.loggers),
        lambda module, batch, i, loss: loss * (not module.logger.log_metrics({"extra": 1})),
        lambda module, batch, i, loss: (
            loss * isinstance(module.trainer, importlib.import_module("pytorch_lightning").Trainer)
        ),
    ],
    ids=["dict", "None", "progress", "lr", "print", "loggers", "logger", "isinstance"],
)
@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_what_steps_do_with_their_trainer(step, tmp_path, capsys):
    bare, shadowed, callback = with_step(step), with_step(step), shadowing()
    theirs = outcome(bare, *fit(bare, tmp_path))
    printed = capsys.readouterr().out
    ours = outcome(shadowed, *fit(shadowed, tmp_path, [callback]))
    assert ours == theirs
    assert capsys.readouterr().out == printed
    assert callback.watched.shadow.fault is None
    assert any(callback.found)
    assert all(s.relative_error == 0 for found in callback.found for s in found.values())


def test_what_a_step_sets_or_calls_on_its_trainer_is_forgotten(tmp_path):
    def step(module, batch, i, loss):
        trainer = module.trainer
        trainer.should_stop = True
        trainer.save_checkpoint(tmp_path / f"{module.steps}.ckpt")
        module.lr_schedulers().step()
        for optimizer in (module.optimizers(), *trainer.optimizers):
            optimizer.zero_grad()
        return loss

    seen = []

    def after_shadow(trainer, module):
        saved = len(list(tmp_path.glob("*.ckpt")))
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        seen.append((trainer.should_stop, saved, rate))

    callback = shadowing(after_shadow=after_shadow)
    fit(with_step(step), tmp_path, [callback])
    assert callback.watched.shadow.fault is None
    assert seen == [(False, 0, 0.1)]  # one batch, then the run itself stops


def test_batch_that_the_step_changes_is_the_runs_own(tmp_path):
    seen = []

    def training_step(self, batch):
        seen.append(batch[0].clone())
        batch[0].zero_()
        return self.head(self.body(batch[0])).sum()

    fit(classifier(training_step=training_step), tmp_path, [shadowing()])
    assert len(seen) == 16
    assert all(torch.equal(*pair) for pair in zip(seen[::2], seen[1::2], strict=True))
    assert all(batch.any() for batch in seen)


def test_modules_within_find_the_trainer_and_print_nothing_either(tmp_path, capsys):
    def step(module, batch, i, loss):
        inner = module.inner
        inner.print("epoch", inner.trainer.current_epoch, inner.logger.name)
        return loss + inner.head(inner.body(batch[0])).sum()

    made, callback = with_step(step), shadowing()
    made.inner = classifier()
    fit(made, tmp_path, [callback])
    assert callback.watched.shadow.fault is None
    assert capsys.readouterr().out.count("epoch") == 8


def with_a_lock(_tmp):
    model = classifier()
    model.lock = threading.Lock()
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda tmp: classifier(training_step=manual, automatic_optimization=False),
            "the module steps its optimizers itself",
        ),
        (with_a_lock, "TypeError: cannot pickle"),
        (
            lambda tmp: classifier(
                training_step=lambda self, dataloader_iter: self.head(
                    self.body(next(dataloader_iter)[0][0])
                ).sum()
            ),
            "dataloader_iter",
        ),
    ],
    ids=["manual", "lock", "dataloader_iter"],
)
@pytest.mark.filterwarnings("ignore:Found .dataloader_iter. argument")
@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*")
def test_what_can_not_run_is_said_once_and_the_run_goes_on(make, why, tmp_path):
    callback = shadowing()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fit(make(tmp_path), tmp_path, [callback])
    told = [str(w.message) for w in caught if "no shadow steps" in str(w.message)]
    assert len(told) == 1
    assert why in told[0]
    assert trainer.global_step == 8


def test_trainers_that_a_module_keeps_elsewhere_are_not_copied(tmp_path):
    def step(module, batch, i, loss):
        module.trainer.lock = threading.Lock()  # a copy would fail on it
        module.kept = {"trainer": module.trainer, "logger": [module.logger]}
        assert module.kept["trainer"].current_epoch == module.current_epoch
        module.kept["logger"][0].experiment.calls.append("kept")
        return loss

    bare, shadowed, callback = with_step(step), with_step(step), shadowing()
    theirs = outcome(bare, *fit(bare, tmp_path))
    assert outcome(shadowed, *fit(shadowed, tmp_path, [callback])) == theirs
    assert callback.watched.shadow.fault is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_module_compiled_whole_is_left_alone(tmp_path):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    bare, shadowed, callback = (
        classifier(training_step=training_step),
        classifier(training_step=training_step),
        shadowing(),
    )
    theirs = outcome(bare, *fit(torch.compile(bare, backend="eager"), tmp_path))
    compiled = torch.compile(shadowed, backend="eager")
    ours = outcome(shadowed, *fit(compiled, tmp_path, [callback]))
    torch._dynamo.reset()
    assert ours == theirs
    assert callback.watched.shadow.fault is None
    assert all(s.relative_error == 0 for found in callback.found for s in found.values())
