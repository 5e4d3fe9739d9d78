"""What is particular to Hugging Face's models, and how it is watched."""

import pytest
import torch
from torch import nn
from training import fit
from zoo import ZOO, transformers

import numwatch
from numwatch import cli
from numwatch.callbacks import Float8Training, NumericsMonitor
from numwatch.record import open_run

MOE = ("mixtral", "qwen2-moe", "granite-moe")


def watched(model, batches, tmp, *callbacks, precision="32-true", **options):
    monitor = NumericsMonitor(every_n_steps=1, strict=True, summary=False, **options)
    fit(model, batches, *callbacks, monitor, precision=precision, tmp=tmp)
    return open_run(monitor.directory)


def first_rows(run):
    return {row["slot"]: row for row in run.tensors(first=0, last=0).to_pylist()}


def test_conv1d_of_gpt2_is_a_gemm_whose_weight_lies_in_by_out(tmp_path):
    run = watched(ZOO["gpt2"].build(), ZOO["gpt2"].batches(1), tmp_path, precision="bf16-mixed")
    slots = {slot.role: slot for slot in run.slots.values() if slot.module.endswith("0.mlp.c_fc")}
    assert set(slots) == set(numwatch.snapshot.ROLES)
    assert {slot.format for slot in slots.values()} == {"bf16"}
    assert slots["weight"].shape == (32, 128)
    plan = numwatch.recommend(run, "fp8")
    reasons = {module.module: module.reason for module in plan.modules}
    assert "not an nn.Linear but Conv1D" in reasons["model.transformer.h.0.mlp.c_fc"]


def test_tied_embedding_has_one_weight_and_the_gradient_of_both_its_uses(tmp_path):
    class Gradient(NumericsMonitor):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.amax = pl_module.model.lm_head.weight.grad.abs().max().item()
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    model, batches = ZOO["gpt2"].build(), ZOO["gpt2"].batches(1)
    assert model.lm_head.weight is model.transformer.wte.weight
    monitor = Gradient(every_n_steps=1, strict=True, summary=False)
    fit(model, batches, monitor, tmp=tmp_path)
    rows = first_rows(open_run(monitor.directory))
    assert rows["model.lm_head:grad_weight"]["amax"] == monitor.amax
    assert "model.transformer.wte:output" in rows
    assert "model.transformer.wte:weight" not in rows


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_experts_without_tokens_have_gradients_of_zero(name, experts, tmp_path):
    entry = ZOO[name]
    count = "num_experts" if name == "qwen2-moe" else "num_local_experts"
    model = entry.build(**{count: 16}, experts_implementation=experts)
    ids = torch.tensor([[1, 2]])
    run = watched(model, [{"input_ids": ids, "labels": ids}], tmp_path)
    rows = first_rows(run)
    owner = next(slot.module for slot in run.slots.values() if slot.module.endswith(".experts"))
    up = f"{owner}.gate_up_proj:grad_weight"
    # Two tokens of two experts each: at most four of sixteen have any.
    assert rows[up]["numel"] == dict(model.named_parameters())[f"{owner}.gate_up_proj"[6:]].numel()
    assert rows[up]["zeros"] >= rows[up]["numel"] * 12 // 16
    assert rows[up]["amax"] > 0
    for slot in ("gate_up_proj:weight", "down_proj:weight", "down_proj:grad_weight"):
        assert f"{owner}.{slot}" in rows
    hidden = model.config.hidden_size
    for role in ("input", "output", "grad_output", "grad_input"):
        assert rows[f"{owner}:{role}"]["numel"] == 2 * hidden  # not the router's weights
    (note,) = (event["note"] for event in run.events() if event["kind"] == "unseen")
    assert note.startswith(f"products inside {owner}")


def test_routers_are_gemms_and_plans_leave_experts_alone(tmp_path):
    entry = ZOO["mixtral"]
    run = watched(entry.build(), entry.batches(1), tmp_path, precision="bf16-mixed")
    mlp = "model.model.layers.0.mlp"
    assert {slot.format for slot in run.slots.values() if slot.module == f"{mlp}.gate"} == {"bf16"}
    reasons = {one.module: one.reason for one in numwatch.recommend(run, "fp8").modules}
    assert "MixtralTopKRouter" in reasons[f"{mlp}.gate"]
    assert "multiplies them itself" in reasons[f"{mlp}.experts.gate_up_proj"]
    assert f"{mlp}.experts" not in reasons


class Routed(nn.Module):
    """Experts as Linears, of which the second is called with no token and the third not at all."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        y = self.experts[0](x) + self.experts[1](x[:0]).sum()
        return transformers.utils.ModelOutput(loss=y.square().mean())


def test_expert_called_without_a_token_has_a_row_of_no_elements(tmp_path):
    run = watched(Routed(), [{"x": torch.randn(4, 8)}], tmp_path)
    rows = first_rows(run)
    assert rows["model.experts.0:input"]["numel"] == 4 * 8
    assert rows["model.experts.1:input"]["numel"] == 0
    assert "model.experts.2:input" not in rows
    assert rows["model.experts.2:weight"]["numel"] == 64
    assert numwatch.diagnose(run) is not None


def test_outputs_by_name_are_seen_with_their_gradients(tmp_path):
    entry = ZOO["bert"]
    run = watched(entry.build(), entry.batches(1), tmp_path, include=["model.bert:*output"])
    rows = first_rows(run)
    assert rows["model.bert:output"]["numel"] == 4 * 16 * 32
    assert rows["model.bert:grad_output"]["numel"] == 4 * 16 * 32


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_counted_once(name, reentrant, tmp_path):
    tables = []
    for checkpointed in (False, True):
        model = ZOO[name].build()
        if checkpointed:
            newest = getattr(model, "activation_checkpointing_enable", None)
            (newest or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
        run = watched(model, ZOO[name].batches(2), tmp_path / str(checkpointed))
        tables.append(run.tensors().drop_columns(["attempt"]).sort_by("slot").to_pylist())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("name", "head"), [("llama", "*lm_head"), ("bert", "*decoder")])
def test_float8_of_torchao(name, head, tmp_path):
    entry = ZOO[name]
    states = []
    for monitored in (False, True):
        model = entry.build()
        float8 = Float8Training(recipe="tensorwise", exclude=[head])
        if monitored:
            run = watched(model, entry.batches(2), tmp_path, float8, precision="bf16-mixed")
        else:
            fit(model, entry.batches(2), float8, precision="bf16-mixed", tmp=tmp_path)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rows = first_rows(run)
    assert float8.converted
    for path in float8.converted:
        assert rows[f"{path}:input"]["cast_format"] == "e4m3"
        assert rows[f"{path}:grad_output"]["cast_format"] == "e5m2"
    assert [one for one in numwatch.diagnose(run) if one.severity == "critical"] == []


def test_report_of_a_model_with_long_names_is_read(tmp_path, monkeypatch, capsys):
    entry = ZOO["qwen2-moe"]
    run = watched(entry.build(), entry.batches(2), tmp_path, precision="bf16-mixed")
    monkeypatch.setattr("sys.argv", ["numwatch", "report", str(run.path)])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().out
    assert not ended.value.code
    table = [line.split()[0] for line in printed.partition("\nslot ")[2].splitlines()[1:13]]
    # A name too long for its column loses its beginning, never its end.
    assert all(any(slot.endswith(name.lstrip("…")) for slot in run.slots) for name in table)
