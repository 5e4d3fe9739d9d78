"""Small nets of every build that a Trainer may meet, with what must be seen of each."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from trainer_data import BATCH, CLASSES, TIMES, WIDTH, features, images, sequences, tokens

from numwatch.snapshot import ROLES
from numwatch.taps.selection import PARAMETER_ROLES


def gemm(*names, without=()):
    """Names of a GEMM module's slots."""
    return {f"net.{name}:{role}" for name in names for role in ROLES if role not in without}


def first(*names):
    """Of one whose input is the batch, which needs no gradient."""
    return gemm(*names, without=("grad_input",))


def frozen(*names, also=()):
    """Of one whose weight is not trained."""
    return gemm(*names, without=("grad_weight", *also))


def recurrent(name):
    return {f"net.{name}:{role}" for role in ("input", "output", "grad_output")}


def output(*names):
    return {f"net.{name}:output" for name in names}


@dataclass(frozen=True)
class Net:
    """A build of a model, its data, and what must be seen.

    Attributes:
        make: Makes the net, which a model holds as `net`.
        data: Makes its dataset.
        slots: Every slot that must have rows, and no other may.
        numels: Elements that some slots have in a step of one micro-batch.
        seldom: Slots that not every step has.
        note: What the documentation says of it.
        fp8: Whether all its Linears can be float8.
    """

    make: Any
    data: Any = features
    slots: frozenset[str] = frozenset()
    numels: dict[str, int] = field(default_factory=dict)
    seldom: frozenset[str] = frozenset()
    note: str = ""
    fp8: bool = False


def plain():
    return nn.Sequential(
        nn.Linear(WIDTH, 32),
        nn.LayerNorm(32),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(32, CLASSES),
    )


PLAIN = Net(
    plain, slots=first("0") | output("1") | gemm("4"), numels={"net.0:input": BATCH * WIDTH}
)


class Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant):
        super().__init__()
        self.first, self.body, self.head = (
            nn.Linear(WIDTH, 32),
            plain_body(),
            nn.Linear(32, CLASSES),
        )
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return self.head(checkpoint(self.body, self.first(x), use_reentrant=self.use_reentrant))


def plain_body():
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(inplace=True), nn.Dropout(0.2))


def checkpointed(*, use_reentrant):
    return Net(
        lambda: Checkpointed(use_reentrant=use_reentrant),
        slots=first("first") | gemm("body.0", "head"),
        numels={"net.body.0:input": BATCH * 32, "net.body.0:grad_output": BATCH * 32},
        note="what is computed again is not counted again",
        fp8=True,
    )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


TIED = Net(
    Tied,
    tokens,
    slots=output("embed") | gemm("head"),
    # Each use of the shared weight sends a gradient to it; torch hands on their sum.
    numels={"net.head:weight": WIDTH * CLASSES, "net.head:grad_weight": WIDTH * CLASSES},
    note="`weight` and `grad_weight` are those of the module that is met first, here the Linear",
)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(WIDTH, 16, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


RECURRENT = Net(
    Recurrent,
    sequences,
    slots=recurrent("lstm") | gemm("head"),
    # Its outputs are those of all times, and the last state and cell once more.
    numels={
        "net.lstm:output": (TIMES + 2) * BATCH * 16,
        "net.lstm:grad_output": TIMES * BATCH * 16,
    },
    note="its several weights are not seen; torch has no FP16 LSTM on CPUs",
)


class Stepwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.cell = nn.Linear(WIDTH, 16), nn.GRUCell(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        state = x.new_zeros(len(x), 16)
        states = []
        for now in x.unbind(1):
            state = self.cell(self.mix(now), state)
            states.append(self.head(state))
        return torch.stack(states, 1)


STEPWISE = Net(
    Stepwise,
    sequences,
    slots=first("mix") | recurrent("cell") | gemm("head"),
    numels={
        "net.mix:input": TIMES * BATCH * WIDTH,
        "net.cell:output": TIMES * BATCH * 16,
        "net.head:grad_output": TIMES * BATCH * CLASSES,
        "net.head:weight": 16 * CLASSES,
        "net.head:grad_weight": 16 * CLASSES,
    },
    note="its calls in a step merge into one row",
)


class Conditional(nn.Module):
    """Every other step takes another way; the third module is never called."""

    def __init__(self):
        super().__init__()
        self.even, self.odd, self.never = (nn.Linear(WIDTH, 32) for _ in range(3))
        self.head = nn.Linear(32, CLASSES)
        self.calls = 0

    def forward(self, x):
        way = self.odd if self.calls % 2 else self.even
        self.calls += 1
        return self.head(way(x))


CONDITIONAL = Net(
    Conditional,
    slots=first("even", "odd") | gemm("head") | {"net.never:weight"},
    seldom=(first("even", "odd") - {"net.even:weight", "net.odd:weight"}),
    note="a step has rows of what it called; weights have theirs always",
    fp8=True,
)


class LoRALinear(nn.Module):
    """A frozen Linear and a trained update of low rank beside it (Hu et al. 2021)."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def lora():
    return nn.Sequential(
        LoRALinear(nn.Linear(WIDTH, 32)), nn.ReLU(), LoRALinear(nn.Linear(32, CLASSES))
    )


LORA = Net(
    lora,
    # Neither the batch nor the first weight needs a gradient, so none comes to its output.
    slots=frozen("0.base", also=("grad_input", "grad_output"))
    | first("0.down")
    | gemm("0.up", "2.down", "2.up")
    | frozen("2.base"),
    note="a frozen weight is seen, and has no `grad_weight`",
)


def wrapped_by_peft():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["0", "4"], lora_dropout=0.1)
    return get_peft_model(plain(), config).base_model.model


PEFT = Net(
    wrapped_by_peft,
    slots=frozen("0.base_layer", also=("grad_input", "grad_output"))
    | first("0.lora_A.default")
    | output("1")
    | frozen("4.base_layer")
    | gemm("0.lora_B.default", "4.lora_A.default", "4.lora_B.default"),
)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


def parametrized(kind):
    square = nn.Linear(WIDTH, WIDTH)
    if kind == "symmetric":
        parametrize.register_parametrization(square, "weight", Symmetric())
    else:
        getattr(parametrizations, kind)(square)
    return nn.Sequential(square, nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def parametrized_net(kind):
    if kind == "weight_norm":
        own, note = gemm("0", without=("grad_input", *PARAMETER_ROLES)), "no `weight`: it is two"
    else:
        own, note = first("0"), "`weight` is the parameter, before the parametrization"
    return Net(lambda: parametrized(kind), slots=own | gemm("2"), note=note)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, CLASSES, 3)
        ).to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.body(x).mean((2, 3))


CONVOLUTIONS = Net(
    Convolutions,
    images,
    slots=first("body.0") | output("body.1") | gemm("body.3"),
    note="tensors keep their memory format",
)
