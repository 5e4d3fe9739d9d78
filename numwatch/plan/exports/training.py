"""A plan's training part as code for PyTorch's AMP and for a Lightning Trainer."""

from __future__ import annotations

from numwatch.plan.types import LossScale, Plan, Training

NO_GROWTH = 2**31 - 1
"""Growth interval of a scale that stays, longer than any run; an overflow still halves it."""
_DTYPES = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}
_IN_MODULE = (
    "\n# Updates round stochastically: let configure_optimizers return\n"
    "#   torchao.optim._AdamW(self.parameters(), bf16_stochastic_round=True)\n"
)
_STOCHASTIC = (
    "# Updates round stochastically: torchao's AdamW does so where weights are in BF16.\n"
    "from torchao.optim import _AdamW\n\n"
    "optimizer = _AdamW(model.parameters(), bf16_stochastic_round=True)\n"
)


def amp_code(plan: Plan) -> str:
    """Returns the autocast and the gradient scaler of a plain PyTorch loop."""
    training = plan.training
    lines = ["import torch", "", *_told(training), 'device = "cuda"  # or "cpu"']
    if training.weights != "fp32":
        lines.append(f"model.to({_DTYPES[training.weights]})  # no FP32 masters")
    if training.compute in _DTYPES:
        lines.append(f"autocast = torch.autocast(device, dtype={_DTYPES[training.compute]})")
    else:
        lines.append("autocast = torch.autocast(device, enabled=False)")
    if training.compute == "fp16" and training.weights == "fp32":
        lines.append(f"scaler = {_scaler(training.loss_scale, 'device')}")
    text = "\n".join(lines) + "\n"
    return text + (f"\n{_STOCHASTIC}" if training.update_rounding == "stochastic" else "")


def lightning_code(plan: Plan) -> str:
    """Returns the Trainer that trains a plan saved as `plan.yaml`."""
    training = plan.training
    imports = ["from pytorch_lightning import Trainer"]
    arguments = []
    if training.compute == "fp16" and training.weights == "fp32":
        imports = ["import torch", *imports, "from pytorch_lightning.plugins import MixedPrecision"]
        scaler = _scaler(training.loss_scale, "device")
        arguments.append(f'plugins=[MixedPrecision("16-mixed", device, {scaler})],')
    else:
        arguments.append(f'precision="{precision_of(training)}",')
    if plan.modules:
        imports.append("from numwatch.callbacks import EmulatePrecision")
        arguments.append('callbacks=[EmulatePrecision("plan.yaml")],  # or ApplyPlan, in torchao')
    body = "\n".join(f"    {argument}" for argument in arguments)
    device = 'device = "cuda"  # or "cpu"\n' if "device" in body else ""
    told = "".join(f"{line}\n" for line in _told(training))
    text = "\n".join(imports) + f"\n\n{told}{device}trainer = Trainer(\n{body}\n)\n"
    return text + (_IN_MODULE if training.update_rounding == "stochastic" else "")


def precision_of(training: Training) -> str:
    """Returns Lightning's name of a precision that needs no plugin of its own."""
    if training.compute == "fp32":
        return "32-true"
    width = {"fp16": "16", "bf16": "bf16"}[training.compute]
    return f"{width}-{'true' if training.weights == training.compute else 'mixed'}"


def _scaler(loss_scale: LossScale | None, device: str) -> str:
    if loss_scale is None:
        return f"torch.amp.GradScaler({device})"
    interval = loss_scale.growth_interval
    grows = NO_GROWTH if interval is None else interval
    return (
        f"torch.amp.GradScaler({device}, init_scale={loss_scale.init!r}, growth_interval={grows})"
    )


def _told(training: Training) -> list[str]:
    reasons = [*training.reasons.items()]
    if training.loss_scale is not None and training.loss_scale.reason:
        reasons.append(("loss scale", training.loss_scale.reason))
    return [f"# {_one_line(name)}: {_one_line(reason)}" for name, reason in reasons]


def _one_line(text: str) -> str:
    """A text as a comment can hold it: source has no line breaks in those, and no NUL at all."""
    line = " ".join(text.split())
    return line if line.isprintable() else repr(line)
