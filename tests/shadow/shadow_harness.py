"""A shadow pass and a comparison around a step, with no more of numwatch than that."""

import torch
from torch import nn

from numwatch.shadow import ShadowPass, ShadowStep
from numwatch.taps.comparison import Comparison
from numwatch.taps.gate import Gate, Mode
from numwatch.taps.modules import attach_modules
from numwatch.taps.selection import select
from numwatch.taps.weight_hooks import attach_weights


class Compared:
    """Sees the run's gradients as the watch's collector does."""

    def __init__(self, model, scale=1.0, **options):
        self.taps, self.slots = select(model)
        self.shadow = ShadowPass(model, self.taps, **options)
        self.comparison = Comparison(len(self.slots))
        self.scale = scale
        gate = Gate(strict=True)
        gate.mode = Mode.FULL
        self.handles = attach_modules(self.taps, gate, self)
        hooked = {}
        attach_weights(self.taps, gate, self, hooked)
        self.handles += hooked.values()

    def see(self, index, tensor, _tap):
        if "grad" in self.slots[index].role:
            self.comparison.see(index, tensor, self.scale)

    def see_compiled(self, index, tensor, tap, _autocast):
        self.see(index, tensor, tap)

    def run_shadow(self, loss_of, stand_ins=()):
        samples = self.shadow.run(ShadowStep(loss_of, stand_ins))
        self.comparison.expect(samples)
        return samples

    def shadows(self):
        found = self.comparison.send().shadows([slot.slot for slot in self.slots])
        return {shadow.slot: shadow for shadow in found}


def gradients_of(model, loss_of):
    """What torch's own hooks see: grad of each Linear's output and input, and of its weight."""
    seen = {}

    def on_output(path):
        def hook(_module, grad_input, grad_output):
            seen[f"{path}:grad_output"] = grad_output[0].clone()
            if grad_input[0] is not None:
                seen[f"{path}:grad_input"] = grad_input[0].clone()

        return hook

    handles = [
        module.register_full_backward_hook(on_output(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    loss_of(model).backward()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            seen[f"{path}:grad_weight"] = module.weight.grad.clone()
    for handle in handles:
        handle.remove()
    return seen


class Net(nn.Module):
    """Dropout, BatchNorm, a module called twice, an in-place activation and a counter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.dropout = nn.Dropout(0.5)
        self.twice = nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        x = torch.relu_(self.norm(self.first(x)))
        x = self.dropout(self.twice(self.dropout(self.twice(x))))
        return self.head(x)


def loss_on(x):
    return lambda model: model(x).square().mean()


def state_of(model):
    """Everything a training step may change, in comparable form."""
    return {
        **{name: tensor.clone() for name, tensor in model.state_dict().items()},
        **{f"{name}.grad": p.grad for name, p in model.named_parameters()},
        "rng": torch.get_rng_state(),
    }


def same(ours, theirs):
    """Whether two states agree bit for bit."""
    return ours.keys() == theirs.keys() and all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in ((ours[name], theirs[name]) for name in ours)
    )
