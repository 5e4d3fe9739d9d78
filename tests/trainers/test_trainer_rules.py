"""The rules themselves: each finds a callback that breaks it."""

import threading

import pytest
import pytorch_lightning as pl
import torch
import trainer_lightning as lightning
import trainer_rules as rules
from test_every_trainer import run_in
from trainer_cases import Case, Setting
from trainer_nets import PLAIN
from trainer_witness import outcome_of


class DrawsANumber(pl.Callback):
    def on_train_batch_end(self, *_):
        torch.rand(())


class ChangesAWeightByOneBit(pl.Callback):
    def on_train_batch_end(self, _trainer, module, *_):
        bias = module.net[4].bias.data
        bias[0] = torch.nextafter(bias[0], torch.tensor(torch.inf))


class KeepsAnAlias(pl.Callback):
    def on_train_start(self, _trainer, module):
        self.kept = []
        self.handle = module.net[4].register_forward_hook(self.keep)

    def keep(self, _module, _args, output):
        self.kept.append(output.detach())

    def on_train_end(self, *_):
        self.handle.remove()


class LeavesAHook(pl.Callback):
    def on_train_start(self, _trainer, module):
        module.net[4].weight.register_hook(lambda gradient: gradient)


class LeavesAnAttribute(pl.Callback):
    def on_train_start(self, _trainer, module):
        module.net[4].forward = module.net[4].forward


class LeavesAThread(pl.Callback):
    def on_train_start(self, *_):
        self.end = threading.Event()
        threading.Thread(target=self.end.wait, args=(5,), name="left", daemon=True).start()


BREAKS = {
    DrawsANumber: rules.training_is_bitwise_the_same,
    ChangesAWeightByOneBit: rules.training_is_bitwise_the_same,
    KeepsAnAlias: rules.nothing_is_kept_alive,
    LeavesAHook: rules.no_trace_is_left,
    LeavesAnAttribute: rules.no_trace_is_left,
    LeavesAThread: rules.no_trace_is_left,
}


@pytest.mark.parametrize(("callback", "rule"), list(BREAKS.items()))
def test_a_rule_finds_what_breaks_it(callback, rule, tmp_path):
    outcomes, bad = [], callback()
    for callbacks in (list, lambda: [bad]):
        case = Case("", lightning.fit(PLAIN, callbacks=callbacks))
        trained = run_in(case, Setting("32-true", tmp_path, watched=False))
        outcomes.append(outcome_of(trained))
    with pytest.raises(AssertionError):
        rule(*outcomes)
    for other in set(BREAKS.values()) - {rule}:
        other(*outcomes)
    if callback is LeavesAThread:
        bad.end.set()
