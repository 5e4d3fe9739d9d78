"""The shadow step: the same batch once more in FP32, on a copy of the model that dies of it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from numwatch.errors import NumwatchError
from numwatch.snapshot import GRADIENT_ROLES
from numwatch.taps.collector import Collector
from numwatch.taps.comparison import Comparison, SampleCollector, Samples, SentComparison
from numwatch.taps.fp32 import StandIns, apart, copy_in_fp32, empty, widen_arguments
from numwatch.taps.gate import Gate, Mode
from numwatch.taps.modules import attach_modules
from numwatch.taps.placement import of_many_ranks
from numwatch.taps.sampling import SAMPLES
from numwatch.taps.scaler import Scaler, loss_scale
from numwatch.taps.selection import Tap
from numwatch.taps.weight_hooks import attach_weights

LossOf = Callable[[nn.Module], Tensor | None]
"""Runs a step's forward on the model it is given and returns the loss, or None where there is none.

It must reach for parameters and buffers through that model alone.
"""

BUDGET = 1 << 24
"""Elements that the samples of all slots hold together, at most, where each is called once."""


@dataclass(frozen=True)
class ShadowStep:
    """What to run once more.

    Attributes:
        loss_of: Runs it.
        stand_ins: What the copy of the model holds instead of objects that must not be copied.
    """

    loss_of: LossOf
    stand_ins: StandIns = ()


class ShadowPass:
    """Runs steps once more in FP32 and keeps a sample of each gradient.

    Weights, buffers, metrics, attributes, gradients and random numbers of the model are left as
    they are: a copy of it takes what a step does to them. What the step does to objects outside of
    the model (a file, a list that a hook appends to) it does twice.

    The memory it takes while it runs is that of the FP32 weights and of one step's activations in
    FP32. The samples stay until they are compared: `BUDGET` elements in all, up to `CALLS` times
    that where slots are called more than once in a step.

    Attributes:
        fault: Why there are no more shadow steps, None while there are.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap], limit: int = SAMPLES) -> None:
        paths = {id(module): path for path, module in model.named_modules()}
        self._model = model
        self._taps = [
            (paths[id(tap.module)], tap.path, tap.gemm, slots, tap.parameter)
            for tap in taps
            if (slots := {r: index for r, index in tap.slots.items() if r in GRADIENT_ROLES})
        ]
        count = sum(len(slots) for *_, slots, _ in self._taps)
        self._limit = max(1, min(limit, BUDGET // max(count, 1)))
        self.fault: str | None = None

    def run(self, step: ShadowStep) -> Samples:
        """Runs a step, before the run itself does.

        Returns:
            The samples of its gradients; empty where it has no loss or could not be run. The first
            step that can not be run is the last that is tried.

        Warns:
            RuntimeWarning: It could not be run; the text says why.
        """
        if self.fault is not None:
            return {}
        collector = SampleCollector(self._limit)
        try:
            self._run(step, collector)
        except Exception as error:  # noqa: BLE001  # the user's own step on a copy: anything
            self.fault = reason(error)
        if self.fault is None:
            return collector.take()
        # After the clause, which held what the step had allocated.
        warnings.warn(
            f"numwatch takes no shadow steps, the training goes on: {self.fault}",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}

    def _run(self, step: ShadowStep, collector: SampleCollector) -> None:
        if of_many_ranks():
            raise NumwatchError("the run is distributed, and a step of one rank alone could hang")
        with apart(self._model):
            shadow = copy_in_fp32(self._model, step.stand_ins)
            try:
                self._attach(shadow, collector)
                loss = step.loss_of(shadow)
                if loss is not None and loss.requires_grad:
                    _backward(loss, shadow)
            finally:
                empty(shadow)

    def _attach(self, shadow: nn.Module, collector: Any) -> None:
        gate = Gate(strict=True)
        gate.mode = Mode.FULL
        modules = dict(shadow.named_modules())
        taps = [
            Tap(modules[place], path, gemm, slots, parameter)
            for place, path, gemm, slots, parameter in self._taps
        ]
        attach_modules(taps, gate, collector)
        attach_weights(taps, gate, collector, {})
        shadow.register_forward_pre_hook(widen_arguments, with_kwargs=True)
        for parameter in shadow.parameters():
            if parameter.requires_grad and not is_lazy(parameter):
                parameter.register_post_accumulate_grad_hook(_forget_gradient)


class ShadowSteps:
    """Has a micro-batch's gradients compared with those that a shadow step has of it.

    Attributes:
        due: Whether the next micro-batch has a shadow step.
        scaler: The run's, which its gradients are scaled by.
        bytes: The most memory that samples have taken.
    """

    def __init__(
        self, model: nn.Module, taps: Sequence[Tap], slots: int, collector: Collector
    ) -> None:
        self.due = False
        self.scaler: Scaler | None = None
        self.bytes = 0
        self._pass = ShadowPass(model, taps)
        self._comparison = Comparison(slots)
        self._collector = collector

    def run(self, step: Callable[[], ShadowStep]) -> None:
        """Runs a micro-batch in FP32 before the run does, where that is due."""
        self.end()  # with the micro-batch before
        if self.due:
            self.due = False
            samples = self._pass.run(step())
            self._comparison.expect(samples)
            self._collector.compare = self._compare
            held = sum(sample.values.nbytes for kept in samples.values() for sample in kept)
            self.bytes = max(self.bytes, held)

    def end(self) -> None:
        """Ends a micro-batch: what comes from now on is not compared."""
        self._comparison.clear()
        self._collector.compare = None

    def send(self) -> SentComparison:
        """Sends what the step's comparison has found."""
        self.end()
        return self._comparison.send()

    def _compare(self, index: int, gradient: Tensor) -> None:
        self._comparison.see(index, gradient, loss_scale(self.scaler))


def _backward(loss: Tensor, shadow: nn.Module) -> None:
    """Runs backward, leaving alone the `.grad` of tensors that the step brings from elsewhere."""
    own = [parameter for parameter in shadow.parameters() if parameter.requires_grad]
    ids = {id(parameter) for parameter in own}
    others = [leaf for leaf in _leaves(loss) if id(leaf) not in ids]
    if any(isinstance(leaf, nn.Parameter) for leaf in others):
        # Not even their hooks may run; but reentrant checkpoints do not allow this.
        loss.backward(inputs=own)
        return
    gradients = [leaf.grad for leaf in others]
    try:
        for leaf in others:
            leaf.grad = None
        loss.backward()
    finally:
        for leaf, gradient in zip(others, gradients, strict=True):
            leaf.grad = gradient


def _leaves(loss: Tensor) -> list[Tensor]:
    """Returns the tensors that a backward from `loss` would accumulate gradients into."""
    leaves: list[Tensor] = []
    seen = {loss.grad_fn}
    nodes: list[Any] = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "AccumulateGrad":
            leaves.append(node.variable)
        found = {next_node for next_node, _ in node.next_functions if next_node is not None}
        nodes += found - seen
        seen |= found
    return leaves


def _forget_gradient(parameter: Tensor) -> None:
    """Frees a gradient as soon as it has been seen: nobody steps with it."""
    parameter.grad = None


def reason(error: BaseException) -> str:
    """Returns an error's first line, with its class where it is not numwatch's own."""
    if isinstance(error, NumwatchError):
        return str(error)
    first, *_ = str(error).strip().split("\n")
    return f"{type(error).__name__}: {first}"
