"""What watching costs: a bare and a watched training step in turn, in one process.

    python benchmarks/overhead.py                     # numwatch alone
    python benchmarks/overhead.py --peers             # and the monitors people use today

Two copies of one GPT train on the same batches, the bare and the watched one taking turns in going
first. Each kind of step has its median ratio of pairs; a cadence's cost is their mean weighted by
how often each kind comes. A kind is what a step records (full rows, amax alone, nothing) and what
the next one will, because a step's weights are seen as soon as the last one has ended. Peers act on
every step.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpt import GPT
from machine import device_name, machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import numwatch
from numwatch.taps.sampling import SAMPLES
from numwatch.watch import Schedule

CONTEXT = 128
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


class Trainee:
    """A GPT, its optimizer, and one training step."""

    def __init__(self, precision: str, device: torch.device, batch: int) -> None:
        torch.manual_seed(0)
        self.model = GPT(vocabulary=256, context=CONTEXT, layers=4, width=256, heads=4).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        enabled = precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self._dtype, self._device, self._batch = AUTOCAST[precision], device, batch

    def batch(self, seed: int) -> Tensor:
        """Returns tokens [batch, context + 1]."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 256, (self._batch, CONTEXT + 1), generator=generator)
        return tokens.to(self._device)

    def step(self, tokens: Tensor) -> Tensor:
        """Trains one step and returns the loss."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            logits = self.model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach()


EVERY_STEP = Schedule(1, 0)
Attach = Callable[[Trainee], AbstractContextManager[Callable[[Tensor], None]]]


@dataclass(frozen=True)
class Variant:
    """A way of watching; `attach` yields what is called with the loss after each step.

    Attributes:
        measured: The cadence of the measured steps.
        weighted: The cadence whose cost is told; its rare kinds of steps are measured oftener.
    """

    attach: Attach
    measured: Schedule = EVERY_STEP
    weighted: Schedule = EVERY_STEP


def numwatch_variant(
    measured: Schedule, weighted: Schedule, update_samples: int | None = SAMPLES
) -> Variant:
    """Returns numwatch at a cadence, its record written to a temporary directory."""

    @contextmanager
    def attach(trainee: Trainee) -> Iterator[Callable[[Tensor], None]]:
        with (
            tempfile.TemporaryDirectory() as directory,
            numwatch.watch(
                trainee.model,
                trainee.optimizer,
                scaler=trainee.scaler,
                dir=directory,
                every_n_steps=measured.every_n_steps,
                amax_every_n_steps=measured.amax_every_n_steps,
                update_samples=update_samples,
                summary=False,
                strict=True,
            ) as watch,
        ):
            yield watch.step

    return Variant(attach, measured, weighted)


@contextmanager
def two_items(trainee: Trainee) -> Iterator[Callable[[Tensor], None]]:
    """The hook people write first: amax and mean of every Linear's output, read at once."""
    seen: dict[str, tuple[float, float]] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            seen[name] = output.abs().max().item(), output.float().mean().item()
            if output.requires_grad:
                output.register_hook(see_gradient)

        def see_gradient(gradient: Tensor) -> None:
            seen[name] = gradient.abs().max().item(), gradient.float().mean().item()

        return hook

    for name, module in trainee.model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(hook_for(name))
    yield lambda _loss: None


@contextmanager
def histogram_observer(trainee: Trainee) -> Iterator[Callable[[Tensor], None]]:
    """torch.ao's HistogramObserver on inputs and outputs of every Linear."""
    from torch.ao.quantization import HistogramObserver

    def hook_for(inputs: nn.Module, outputs: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs(args[0].detach().float())
            outputs(output.detach().float())

        return hook

    for module in trainee.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(hook_for(HistogramObserver(), HistogramObserver()))
    yield lambda _loss: None


@contextmanager
def debug_underflow_overflow(trainee: Trainee) -> Iterator[Callable[[Tensor], None]]:
    """Transformers' DebugUnderflowOverflow."""
    from transformers.debug_utils import DebugUnderflowOverflow

    DebugUnderflowOverflow(trainee.model, max_frames_to_save=100)
    yield lambda _loss: None


@contextmanager
def wandb_watch(trainee: Trainee) -> Iterator[Callable[[Tensor], None]]:
    """wandb.watch of gradients and parameters at every step, offline."""
    import wandb

    with tempfile.TemporaryDirectory() as directory:
        run = wandb.init(mode="offline", dir=directory, settings=wandb.Settings(silent=True))
        run.watch(trainee.model, log="all", log_freq=1)
        yield lambda loss: run.log({"loss": loss})
        run.finish()


VARIANTS = {
    "numwatch, default": numwatch_variant(Schedule(8, 4), Schedule()),
    "numwatch, every step": numwatch_variant(EVERY_STEP, EVERY_STEP),
    "numwatch, every step, tensors alone": numwatch_variant(EVERY_STEP, EVERY_STEP, 0),
}
PEERS = {
    "hook with two .item()": Variant(two_items),
    "HistogramObserver": Variant(histogram_observer),
    "DebugUnderflowOverflow": Variant(debug_underflow_overflow),
    "wandb.watch(all)": Variant(wandb_watch),
}


def seconds(trainee: Trainee, tokens: Tensor, after: Callable[[Tensor], None]) -> float:
    """Returns how long a step and what watches it take, the device's work included."""
    start = time.perf_counter()
    after(trainee.step(tokens))
    if tokens.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kind(schedule: Schedule, step: int) -> str:
    """Returns what a step records, and what the next one will."""
    now, following = (schedule.mode(step + later).name.lower() for later in (0, 1))
    return f"{now}, then {following}"


def measure(name: str, variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios watched / bare of one variant."""
    device = torch.device(args.device)
    bare, watched = (Trainee(args.precision, device, args.batch) for _ in range(2))
    schedule = variant.measured
    steps = args.pairs * schedule.every_n_steps
    ratios: dict[str, list[float]] = {}
    bare_seconds = []
    with variant.attach(watched) as after:
        for step in track(range(args.warm_up + steps), name, console=Console(stderr=True)):
            tokens = bare.batch(step)
            turns = [(bare, lambda _loss: None), (watched, after)]
            times = {who: seconds(who, tokens, done) for who, done in turns[:: (-1) ** step]}
            if step >= args.warm_up:
                ratios.setdefault(kind(schedule, step), []).append(times[watched] / times[bare])
                bare_seconds.append(times[bare])
    medians = {name: statistics.median(pairs) for name, pairs in ratios.items()}
    cadence = variant.weighted
    return {
        "name": name,
        "cost": statistics.fmean(
            medians[kind(cadence, step)] for step in range(cadence.every_n_steps)
        ),
        "by_kind": {name: round(ratio, 4) for name, ratio in medians.items()},
        "pairs": {name: len(pairs) for name, pairs in ratios.items()},
        "bare_step_seconds": statistics.median(bare_seconds),
    }


def main() -> None:
    """Measures, prints a table, and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--precision", choices=list(AUTOCAST), default="bf16")
    parser.add_argument("--device", default=device)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--peers", action="store_true", help="needs the extra numwatch[bench]")
    parser.add_argument("--out", type=Path, help="JSON file, default benchmarks/results/…")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ.setdefault("WANDB_SILENT", "true")
    found = []
    with contextlib.redirect_stdout(None):  # peers print
        for name, variant in (VARIANTS | (PEERS if args.peers else {})).items():
            found.append(measure(name, variant, args))
    table = Table("watched / bare", "cost", "by kind of step", "pairs", title=args.precision)
    for row in found:
        table.add_row(
            row["name"],
            f"{row['cost']:.3f}x",
            "\n".join(f"{ratio:.3f}x {name}" for name, ratio in row["by_kind"].items()),
            "\n".join(map(str, row["pairs"].values())),
        )
    Console().print(table)
    default = Path(__file__).parent / "results"
    out = args.out or default / f"overhead-{args.precision}-{device_name(args.device)}.json"
    report = {
        "machine": machine(args.device),
        "precision": args.precision,
        "batch": args.batch,
        "context": CONTEXT,
        "results": found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
