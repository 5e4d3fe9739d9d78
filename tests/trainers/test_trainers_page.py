"""docs/trainers.md says what the table of the tests says, and its code runs."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringModel
from trainer_cases import CASES, WITH_FP8, table

import numwatch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trainers.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_table_is_that_of_the_tests():
    told = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert told == list(table())
    assert all(set(case.always) <= set(case.precisions) <= set(WITH_FP8) for case in CASES)
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for code in blocks("python"):
        exec(compile(code, "docs/trainers.md", "exec"), names)
    assert numwatch.open_run("runs/fabric").attempts[0]["precision"] == "bf16-mixed"
    assert numwatch.open_run("runs/hf").attempts[0]["precision"] == "bf16-mixed"
    assert numwatch.open_run("runs/loop").steps()["loss_scale_before"][0].as_py() == 65536.0
    assert capsys.readouterr().out.count("numwatch · ") >= 3


@pytest.mark.filterwarnings("ignore:(?s).*(Jsonargparse|was deprecated in v4)")
def test_the_yaml_of_the_page_is_a_trainer_of_lightning_cli(tmp_path, monkeypatch):
    (config,) = blocks("yaml")
    (tmp_path / "config.yaml").write_text(config)
    arguments = [f"--config={tmp_path / 'config.yaml'}", "--trainer.accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    cli = LightningCLI(BoringModel, run=False, save_config_callback=None, seed_everything_default=0)
    (monitor,) = (c for c in cli.trainer.callbacks if type(c).__name__ == "NumericsMonitor")
    assert cli.trainer.precision == "bf16-mixed"
    assert monitor._settings.every_n_steps == 20
    assert monitor._settings.exclude == ["*.head"]


@pytest.mark.slow
def test_the_example_of_fabric_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(ROOT / "examples" / "fabric.py"))
    example["main"].__globals__.update(BATCHES=40, EPOCHS=1)
    example["main"]()
    steps = numwatch.open_run("runs/fabric").steps().to_pydict()
    assert steps["step"] == list(range(20))
    assert "16-mixed" in capsys.readouterr().out
