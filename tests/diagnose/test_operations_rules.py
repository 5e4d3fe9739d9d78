"""The rules about operations, over records of real runs and over closed forms."""

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader
from versions import SCALED_MM

import numwatch
from numwatch.callbacks import NumericsMonitor
from numwatch.demo.gpt import GPT, GPTConfig
from numwatch.demo.precision import PRECISIONS
from numwatch.demo.text import Windows, corpus, split
from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.gemms import Gemm, gemm_table, padded
from numwatch.diagnose.rules.operations import RULES
from numwatch.diagnose.thresholds import MULTIPLES
from numwatch.record import Recorder
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.step_entries import Operation


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch):
    monkeypatch.setattr("torch._dynamo.eval_frame.cached_backends", {})


def findings(run):
    evidence = Evidence(run)
    return [finding for rule in RULES for finding in rule(evidence)]


def operation(name="mm", *, order=0, phase="forward", dtype="float16", **fields):
    shapes = ((fields["m"], fields["k"]), (fields["k"], fields["n"])) if "m" in fields else ((4,),)
    filled = {"module": "fc", "count": 1, "dtypes": (dtype,) * len(shapes), "shapes": shapes}
    if "m" in fields:
        filled |= {"gemm": phase, "contiguous": True}
    filled |= {"order": order, "operation": f"aten.{name}.default", "output": dtype}
    return Operation(phase=phase, **{**filled, **fields})


def run_of(tmp_path, *operations, device="cpu", flags=None, step=0):
    with Recorder.open(
        tmp_path, precision="16-mixed", device=device, arguments={}, flags=flags
    ) as recorder:
        recorder.write(Snapshot(step, StepScalars(), operations=operations))
    return numwatch.open_run(tmp_path)


def test_operations_survive_the_record(tmp_path):
    kept = (
        operation(m=4, n=6, k=8, order=0),
        operation("exp", order=1, amax=float("inf"), output=None),
        operation("_softmax", order=2, shapes=((2, 3), ()), dtypes=("bfloat16", "int64")),
    )
    run = run_of(tmp_path, *kept, flags={"cudnn.allow_tf32": True})
    rows = run.operations().to_pylist()
    for row in rows:
        assert (row.pop("attempt"), row.pop("step")) == (0, 0)
        row["dtypes"] = tuple(row["dtypes"])
        row["shapes"] = tuple(map(tuple, row["shapes"]))
    assert tuple(Operation(**row) for row in rows) == kept
    assert run.flags == {"cudnn.allow_tf32": True}


def test_a_record_without_operations_and_flags_has_no_findings(tmp_path):
    run = run_of(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"flags"', '"other"'))
    run = numwatch.open_run(tmp_path)
    assert run.operations().num_rows == 0
    assert run.flags == {}
    assert findings(run) == []
    assert gemm_table(run.operations()) == []


def test_of_several_attempts_the_last_audit_counts(tmp_path):
    run_of(tmp_path, operation("exp"))
    run = run_of(tmp_path, operation("exp", module="other"), step=50)
    (found,) = findings(run)
    assert (found.slot, found.step) == ("other", 50)


@given(st.integers(1, 10**6), st.sampled_from(sorted(MULTIPLES.values())))
def test_padding_is_the_least_multiple(size, multiple):
    up = padded(size, multiple)
    assert up % multiple == 0
    assert size <= up < size + multiple


def gemm(m, n, k):
    return Gemm("head", ("forward",), "float16", m, n, k, 1, 1, contiguous=True)


def test_gpt2_s_vocabulary():
    head = gemm(4096, 50257, 768)
    assert head.padding("fp16") == {"n": (50257, 50264)}
    assert head.padding("fp8") == {"n": (50257, 50272)}
    assert head.padding("block fp8") == {"n": (50257, 50304)}
    assert head.fits == ()
    assert gemm(4096, 50264, 768).fits == ("fp16", "bf16", "tf32")
    assert gemm(4096, 50304, 768).fits == tuple(MULTIPLES)


def test_the_table_has_each_gemm_once_and_convolutions_by_their_channels():
    table = [
        operation(m=10, n=6, k=8, order=3, count=2),
        operation(m=10, n=8, k=6, order=5, phase="backward", gemm="dgrad"),
        operation(m=6, n=8, k=10, order=4, phase="backward", gemm="wgrad", contiguous=False),
        operation("bmm", m=5, n=5, k=2, order=1, shapes=((3, 5, 2), (3, 2, 5))),
        operation("convolution", order=0, shapes=((2, 3, 9, 9), (8, 3, 3, 3))),
        operation("convolution", order=2, shapes=((2, 8, 9, 9), (8, 1, 3, 3))),  # depthwise
        operation("convolution", order=6, shapes=((2, 8, 9, 9), (8, 4, 2, 2))),  # two groups
    ]
    found = gemm_table([vars(row) for row in table])
    assert [(g.m, g.n, g.k, g.batch, g.count) for g in found] == [
        (None, 8, 3, 1, 1),
        (5, 5, 2, 3, 1),
        (10, 6, 8, 1, 4),
    ]
    assert found[2].kinds == ("forward", "wgrad", "dgrad")
    assert not found[2].contiguous
    assert found[2].multiplications == 10 * 6 * 8 * 4
    assert found[1].multiplications == 5 * 5 * 2 * 3


def test_a_misaligned_head_is_named_with_its_padding(tmp_path):
    run = run_of(tmp_path, operation(m=4096, n=50257, k=768, module="head"))
    (found,) = findings(run)
    assert (found.rule, found.severity, found.slot) == ("misaligned-gemm", "info", "head")
    assert found.cure == "pad out features from 50257 to 50264; FP8 would want out features 50272"


@pytest.mark.parametrize(
    ("device", "size", "severity"), [("cuda:0", 50257, "warning"), ("cuda:0", 65, "info")]
)
def test_misalignment_hurts_on_cuda_where_there_is_much_of_it(tmp_path, device, size, severity):
    run = run_of(tmp_path, operation(m=4096, n=size, k=768), device=device)
    (found,) = findings(run)
    assert (found.rule, found.severity) == ("misaligned-gemm", severity)


@pytest.mark.parametrize(("precision", "count"), [("highest", 0), ("high", 1)])
def test_fp32_asks_for_multiples_only_under_tf32(tmp_path, precision, count):
    flags = {"float32_matmul_precision": precision}
    run = run_of(tmp_path, operation(m=4, n=5, k=8, dtype="float32"), flags=flags)
    assert len(findings(run)) == count


def test_an_operand_that_must_be_copied(tmp_path):
    run = run_of(tmp_path, operation(m=16, n=16, k=16, contiguous=False))
    (found,) = findings(run)
    assert (found.rule, found.severity, found.slot) == ("non-contiguous-gemm", "info", "fc")


@pytest.mark.parametrize(
    ("flag", "dtype", "device", "count"),
    [
        ("allow_fp16_reduced_precision_reduction", "float16", "cuda:0", 1),
        ("allow_fp16_accumulation", "float16", "cuda:0", 1),
        ("allow_fp16_accumulation", "bfloat16", "cuda:0", 0),
        ("allow_bf16_reduced_precision_reduction", "bfloat16", "cuda:0", 1),
        ("allow_bf16_reduced_precision_reduction", "bfloat16", "cpu", 0),
    ],
)
@pytest.mark.parametrize("on", [True, [True, True]])
def test_reduced_precision_sums_are_named_where_they_happen(
    tmp_path, flag, dtype, device, count, on
):
    run = run_of(
        tmp_path,
        operation(m=16, n=16, k=16, dtype=dtype),
        device=device,
        flags={f"cuda.matmul.{flag}": on, "cuda.matmul.allow_tf32": True},
    )
    found = findings(run)
    assert len(found) == count
    for finding in found:
        assert finding.severity == "info"
        assert f"torch.backends.cuda.matmul.{flag} = False" in finding.cure


def test_fast_accumulation_in_float8(tmp_path):
    run = run_of(
        tmp_path,
        operation("_scaled_mm", m=16, n=16, k=16, dtype="float8_e4m3fn"),
        device="cuda:0",
        flags={"float8_use_fast_accum": {"output": 2, "grad_input": 0, "grad_weight": 1}},
    )
    (found,) = findings(run)
    assert found.rule == "low-precision-accumulation"
    assert "for output" in found.cure
    assert "for grad_weight" in found.cure
    assert "grad_input" not in found.cure


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({"amax": 8000.0}, "info"),
        ({"amax": 8200.0}, "warning"),
        ({"amax": float("inf")}, "warning"),
        ({"amax": float("nan")}, "warning"),
        ({"amax": 1e30, "dtype": "bfloat16"}, "info"),
        ({"amax": 60000.0, "phase": "backward"}, None),
        ({"dtype": "float32"}, None),
    ],
)
def test_sensitive_operations_warn_close_to_fp16_s_maximum(tmp_path, changes, severity):
    found = findings(run_of(tmp_path, operation("exp", **changes)))
    assert [f.severity for f in found] == ([severity] if severity else [])
    assert all(f.rule == "sensitive-operation-low" and f.slot == "fc" for f in found)


class Planted(pl.LightningModule):
    """Weighs by an exp of its own in FP16, which comes to e^9.5 = 13360 at x = 1."""

    def __init__(self, scale):
        super().__init__()
        self.fc, self.scale = nn.Linear(16, 16, bias=False), scale
        nn.init.eye_(self.fc.weight)

    def training_step(self, batch, _):
        weights = (self.fc(batch) * self.scale).exp()
        return weights.float().log().square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)


@pytest.mark.parametrize(("scale", "severity"), [(9.5, "warning"), (1.0, "info")])
def test_an_exp_by_hand_in_a_real_fp16_run(tmp_path, scale, severity):
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    run = fit(
        Planted(scale),
        torch.ones(32, 16),
        tmp_path,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    found = [f for f in findings(run) if f.rule == "sensitive-operation-low"]
    assert [f.severity for f in found] == [severity]
    assert "exp" in found[0].cause
    assert {row["step"] for row in run.operations().to_pylist()} == {0}


class Failing(Planted):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx).backward()
        raise ZeroDivisionError


def test_a_fit_that_raises_in_the_audited_step_leaves_no_mode(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(Failing(1.0), torch.ones(32, 16), tmp_path)
    assert torch._C._len_torch_dispatch_stack() == 0


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_the_demo_is_healthy(precision, tmp_path):
    config = GPTConfig(context=16, layers=2, heads=2, width=32, dropout=0.1)
    chosen = PRECISIONS[precision]
    training, _ = split(corpus())
    run = fit(
        GPT(config, chosen.optimizer),
        Windows(training, config.context),
        tmp_path,
        callbacks=chosen.callbacks(),
        **chosen.trainer("cpu"),
    )
    found = findings(run)
    assert {f.severity for f in found} <= {"info"}
    table = gemm_table(run.operations())
    linears = {gemm.module: gemm for gemm in table if gemm.module.startswith("blocks.")}
    assert len(linears) >= 2 * 4
    assert all(set(gemm.kinds) == {"forward", "dgrad", "wgrad"} for gemm in linears.values())
    in_float8 = precision == "fp8" and SCALED_MM  # else its products are emulated
    assert all(gemm.dtype.startswith("float8") for gemm in linears.values()) == in_float8


def fit(model, data, tmp_path, callbacks=(), **arguments):
    torch.manual_seed(0)
    monitor = NumericsMonitor(strict=True, summary=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        callbacks=[*callbacks, monitor],
        **arguments,
    )
    trainer.fit(model, DataLoader(data, batch_size=16, drop_last=True))
    assert torch._C._len_torch_dispatch_stack() == 0
    return numwatch.open_run(monitor.directory)
