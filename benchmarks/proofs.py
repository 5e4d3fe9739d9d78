"""Plans recommended for the demo's GPT, proved by training: what each costs, over three seeds.

    python benchmarks/proofs.py                # about a quarter of an hour on two CPU cores
    python benchmarks/proofs.py --seeds 1 --steps 60

Trains the demo in BF16 and asks for a plan in each format. Each plan is then trained beside BF16,
over the same batches and seeds: emulated, and FP8 in torchao's real kernels too. A plan that is bad
on purpose, E4M3 gradients without a scale, must fail.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from machine import machine
from rich.console import Console

from numwatch.callbacks.prove import prove
from numwatch.demo.quiet import quiet
from numwatch.demo.subject import demo_subject
from numwatch.demo.train import run_demo
from numwatch.formats import get_format
from numwatch.plan import ModulePlan, Operand, Plan
from numwatch.recipes.spec import parse_recipe
from numwatch.recommend import recommend
from numwatch.recommend.proof import Proof, spread
from numwatch.report.proof_lines import proof_lines

RESULTS = Path(__file__).parent / "results" / "proofs-cpu.json"
ALLOWED = {"fp8": 0.01, "mxfp8": 0.01, "nvfp4": 0.03}
"""Relative rise of the validation loss that each may cost."""


def bad(plan: Plan) -> Plan:
    """Returns a plan whose gradients are cast to E4M3 as they come: they are around 2^-20."""
    naive = Operand(get_format("e4m3"), parse_recipe("static"), reason="on purpose")
    modules = tuple(
        module
        if module.kept
        else ModulePlan(module.module, {**module.operands, "grad_output": naive})
        for module in plan.modules
    )
    return replace(plan, modules=modules)


def row(name: str, proof: Proof) -> dict[str, object]:
    """Returns what the table shows of a proof."""
    (baseline, _), (under, deviation) = spread(proof.baseline), spread(proof.plan)
    within = [
        slot.predicted_flushed.low <= slot.flushed <= slot.predicted_flushed.high
        for slot in proof.slots
    ]
    apart = [abs(slot.predicted_flushed.value - slot.flushed) for slot in proof.slots]
    return {
        "plan": name,
        "baseline": baseline,
        "loss": under,
        "deviation": deviation,
        "rise": proof.rise,
        "error": proof.error,
        "allowed": proof.tolerance,
        "verdict": proof.verdict,
        "slower": proof.seconds["plan"] / proof.seconds["baseline"],
        "operands": len(proof.slots),
        "flushed_within_bounds": sum(within),
        "flushed_worst_difference": max(apart, default=0.0),
    }


def main() -> None:
    """Trains, prints each proof, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        run_demo("bf16-mixed", steps=arguments.steps, device="cpu", out=source)
        plans = {target: recommend(source, target) for target in ALLOWED}
        tasks = [(target, plan, ALLOWED[target], False) for target, plan in plans.items()]
        tasks.insert(1, ("fp8, torchao", plans["fp8"], ALLOWED["fp8"], True))
        tasks.append(("E4M3 gradients unscaled", bad(plans["fp8"]), ALLOWED["fp8"], False))
        for name, plan, tolerance, real in tasks:
            with quiet(notices=False):
                proof = prove(
                    plan,
                    demo_subject,
                    out=Path(directory) / name,
                    seeds=arguments.seeds,
                    steps=arguments.steps,
                    tolerance=tolerance,
                    real=real,
                )
            console.print(f"\n{name}", style="bold")
            for line in proof_lines(proof, worst=4):
                console.print(line, soft_wrap=True)
            rows.append(row(name, proof))
    content = {**machine("cpu"), "seeds": arguments.seeds, "steps": arguments.steps, "rows": rows}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
