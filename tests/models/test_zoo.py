"""Every architecture in every precision: all is seen, all is right, nothing is disturbed."""

import numpy as np
import pytest
import torch
from torch import nn
from training import Witness, fit
from zoo import ZOO, transformers

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.snapshot import ROLES

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, transformers.pytorch_utils.Conv1D)
QUICK = {("gpt2", "16-mixed"), ("t5", "bf16-true"), ("mamba", "32-true"), ("vit", "16-mixed")}


def cases():
    """Every model under BF16 autocast, some elsewhere; all of the rest among the slow tests."""
    for name in ZOO:
        for precision in PRECISIONS:
            quick = precision == "bf16-mixed" or (name, precision) in QUICK
            yield pytest.param(name, precision, marks=() if quick else pytest.mark.slow)


def watched(model, entry, tmp, precision):
    monitor = NumericsMonitor(every_n_steps=1, strict=True, summary=False)
    fit(model, entry.batches(), monitor, precision=precision, tmp=tmp)
    return numwatch.open_run(monitor.directory)


def row_of(tensor):
    """Returns what a row says of a tensor, by numpy."""
    x = np.abs(tensor.double().numpy().ravel())
    x = x[x > 0]
    binades = np.maximum(np.frexp(x)[1] - 1, -127)
    return {
        "numel": tensor.numel(),
        "zeros": tensor.numel() - x.size,
        "amax": float(x.max()),
        "amin": float(x.min()),
        "binade_first": int(binades.min()),
        "binades": np.bincount(binades - binades.min()).tolist(),
    }


@pytest.mark.parametrize(("name", "precision"), list(cases()))
def test_training_is_the_same_and_all_that_ran_is_seen_and_right(name, precision, tmp_path):
    entry = ZOO[name]
    bare, model = entry.build(), entry.build()
    witness = Witness(*MATRICES)
    fit(bare, entry.batches(), witness, precision=precision, tmp=tmp_path)
    run = watched(model, entry, tmp_path, precision)

    theirs, ours = bare.state_dict(), model.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)

    first = {row["slot"]: row for row in run.tensors(first=0, last=0).to_pylist()}
    for path, kind in witness.classes.items():
        takes_data = path.removeprefix("model.") in entry.takes_data
        for role in ROLES:
            if not (takes_data and role == "grad_input"):
                assert f"{path}:{role}" in first
        assert run.slots[f"{path}:input"].module_class == kind
    assert {row["step"] for row in run.tensors().to_pylist()} == {0, 1, 2}

    for slot, tensor in witness.seen.items():
        expected = row_of(tensor)
        assert {key: first[slot][key] for key in expected} == expected, slot
        assert first[slot]["sumsq"] == pytest.approx(tensor.double().square().sum().item())

    names = {slot.module for slot in run.slots.values()} | set(run.slots)
    modules = {row["module"] for row in run.operations().to_pylist()}
    found = numwatch.diagnose(run)
    assert [finding for finding in found if finding.severity == "critical"] == []
    assert all(finding.slot in names | modules | {None} for finding in found)
    if precision == "bf16-mixed":  # where plans start from
        for target in ("amp", "fp8", "mxfp8", "nvfp4", "int8-weights"):
            plan = numwatch.recommend(run, target)
            assert {module.module for module in plan.modules} <= names
            assert all(module.reason for module in plan.modules)
