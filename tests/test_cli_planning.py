"""The commands recommend, export, replay and prove."""

import json

import pytest
from command_line import bf16_run, refused

import numwatch
from numwatch.plan import ModulePlan

SCRIPT = """
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 32)
        self.fc, self.out = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 16)

    def training_step(self, batch, _):
        (codes,) = batch
        logits = self.head(self.out(torch.relu(self.fc(self.embed(codes)))))
        return nn.functional.cross_entropy(logits.float(), (3 * codes) % 16)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make():
    codes = torch.arange(512) % 16
    loader = DataLoader(TensorDataset(codes), 64, shuffle=True)
    return Net(), loader, None, {"accelerator": "cpu", "precision": "bf16-mixed"}


def wrong():
    return 3
"""


@pytest.fixture
def command(command, monkeypatch):
    """The command, in a terminal wide enough for a plan's lines."""
    monkeypatch.setenv("COLUMNS", "160")
    return command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return bf16_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_recommend_prints_a_plan_and_writes_it(command, run, tmp_path):
    path = tmp_path / "plan.yaml"
    code, out, _ = command("recommend", run, "--target", "fp8", "-o", path, "--reasons")
    assert code == 0
    for text in ("1:input", "e4m3", "current", "stays BF16", "last layer", "1 of 2 GEMMs in fp8"):
        assert text in out
    assert "at the 95 % point" in out
    assert numwatch.load_plan(path) == numwatch.recommend(run, "fp8")


@pytest.mark.parametrize("target", ["amp", "mxfp8", "mxfp4", "nvfp4", "int8-weights"])
def test_every_target_as_json(command, run, target):
    code, out, _ = command("recommend", run, "--target", target, "--json")
    assert code == 0
    assert json.loads(out)["target"] == target


def test_recommend_refuses(command, run, tmp_path):
    refused(command("recommend", run, "--target", "fp9"), "amp, fp8", "did you mean 'fp8'")
    refused(command("recommend", "nowhere"), "no such directory")
    refused(command("recommend", run, "-o", tmp_path / "no" / "plan.yaml"), "can't write the plan")


def test_export_prints_what_a_library_takes(command, run, tmp_path):
    path = tmp_path / "plan.yaml"
    command("recommend", run, "-o", path)
    code, out, _ = command("export", path, "--to", "torchao")
    assert code == 0
    assert "convert_to_float8_training" in out
    refused(command("export", path, "--to", "torcha"), "did you mean 'torchao'")
    refused(command("export", tmp_path / "none.yaml", "--to", "json"), "can't read a plan")


def test_replay_prints_who_suffers(command, run):
    code, out, _ = command("replay", run, "--recipe", "delayed:history=16,margin=0")
    assert code == 0
    for text in ("delayed:history=16", "3 of 6 steps were recorded", "1:input", "scale"):
        assert text in out
    code, out, _ = command("replay", run, "--recipe", "nvfp4", "--json")
    assert json.loads(out)["recipe"] == "nvfp4"


def test_replay_sweeps(command, run):
    arguments = ("--recipe", "delayed", "--sweep", "history=1,16", "margin=0,1")
    code, out, _ = command("replay", run, *arguments)
    assert code == 0
    assert out.count("delayed:history=") == 4
    code, out, _ = command("replay", run, *arguments, "--json")
    assert len(json.loads(out)["settings"]) == 4


def test_replay_refuses(command, run):
    refused(command("replay", run, "--recipe", "delayd"), "did you mean 'delayed'")
    refused(command("replay", run, "margin=1"), "settings come behind --sweep")
    refused(command("replay", run, "--format", "e4m4"), "unknown format 'e4m4'")
    refused(command("replay", run, "--sweep", "histor=1"), "did you mean 'history'")


@pytest.mark.slow
def test_prove_trains_a_script(command, run, script, tmp_path):
    path = tmp_path / "plan.yaml"
    (chosen, _) = numwatch.recommend(run, "fp8").modules
    numwatch.Plan("fp8", modules=(ModulePlan("fc", chosen.operands),)).save(path)
    arguments = ("--script", f"{script}:make", "--steps", 40, "--seeds", 2, "--out", tmp_path / "p")
    code, out, _ = command("prove", path, *arguments, "--tolerance", 5)
    assert code == 0, out
    assert "holds" in out
    assert "fc:grad_output" in out
    code, out, _ = command("prove", path, *arguments, "--json", "--tolerance", 5)
    assert json.loads(out)["verdict"] == "holds"
    assert (tmp_path / "p" / "plan-1" / "numwatch").is_dir()


def test_prove_refuses(command, script, tmp_path):
    plan = tmp_path / "plan.yaml"
    numwatch.Plan("fp8").save(plan)
    refused(command("prove", plan), "--script FILE:FUNCTION or --demo")
    refused(command("prove", plan, "--demo", "--script", "x:y"), "either --script")
    refused(command("prove", plan, "--script", f"{script}:mak"), "no function 'mak'", "'make'")
    refused(
        command("prove", plan, "--script", f"{script}:wrong", "--out", tmp_path / "o"),
        "what is proved is a LightningModule",
    )


def test_the_help_teaches(command):
    for name in ("recommend", "replay", "export", "prove"):
        code, out, _ = command(name, "--help")
        assert code == 0
        assert "Usage" in out
