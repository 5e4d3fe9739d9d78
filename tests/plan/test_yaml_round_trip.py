import dataclasses
import math
import os
import time

import pytest
import yaml
from hypothesis import given, settings
from plan_builders import ODD_NAMES, PLANS, fp8, operand, same

from numwatch.errors import NumwatchError
from numwatch.plan import ModulePlan, Plan, Prediction, Training, load_plan, parse_plan, plan_text
from numwatch.plan.yaml_file import LARGEST
from numwatch.recipes.scaling import DelayedScaling
from numwatch.stats import Bounded


@settings(max_examples=200, deadline=None)
@given(PLANS)
def test_any_plan_reads_back_equal(plan):
    text = plan_text(plan)
    assert same(parse_plan(text), plan)
    # Any YAML reader takes it, and finds the modules under their names, as text.
    modules = yaml.safe_load(text).get("modules") or {}
    assert list(modules) == [module.module for module in plan.modules]


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_odd_names_read_back_with_and_without_libyaml(loader, monkeypatch):
    monkeypatch.setattr("numwatch.plan.yaml_tree._LOADER", getattr(yaml, loader))
    plan = Plan("fp8", modules=tuple(fp8(name) for name in ODD_NAMES))
    assert parse_plan(plan_text(plan)) == plan


def test_names_need_no_quotes_when_a_person_writes_them():
    text = "version: 1\ntarget: fp8\nmodules:\n"
    names = ["yes", "1.0", "0", "null", "2026-01-01", "a:b", "0x1f"]
    for name in names:
        text += f"  {name}:\n    keep: true\n"
    assert [module.module for module in parse_plan(text).modules] == names


def predicted(**more):
    prediction = Prediction(Bounded(0.2, 0.1, 0.3), Bounded.exactly(0.0), math.inf, 31.5)
    return operand("e4m3", "current", predicted=prediction, **more)


def test_a_prediction_leaves_with_the_choice_it_was_made_for():
    text = plan_text(Plan("fp8", modules=(ModulePlan("fc", {"input": predicted()}),)))
    ((_, _, kept),) = parse_plan(text.replace("compute: bf16", "compute: fp16")).operands()
    assert kept == predicted()
    edited = text.replace("{format: e4m3", "{format: e5m2")
    assert edited != text
    ((_, _, changed),) = parse_plan(edited).operands()
    assert changed == operand("e5m2", "current")


def test_reasons_survive_and_comments_are_written_anew(tmp_path):
    plan = Plan(
        "fp8",
        Training(reasons={"compute": "wide # enough"}),
        (ModulePlan("fc", {"input": predicted(reason="flushes: 3 %")}), ModulePlan("head")),
    )
    path = tmp_path / "plan.yaml"
    plan.save(path)
    plan.save(str(path))
    assert load_plan(path) == plan
    assert path.read_text().startswith("# What to train in")
    assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_plan_that_has_no_text_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan.yaml"
    Plan("fp8").save(path)
    custom = dataclasses.replace(
        operand("e4m3", "delayed"), recipe=DelayedScaling(algorithm=lambda history: history[0])
    )
    with pytest.raises(NumwatchError, match=r"a function .* can't be written"):
        Plan("fp8", modules=(ModulePlan("fc", {"input": custom}),)).save(path)
    with pytest.raises(NumwatchError, match=r"text, numbers, .*; got tuple \(1, 2\)"):
        Plan("fp8", source={"steps": (1, 2)}).save(path)
    endless = []
    endless.append(endless)
    with pytest.raises(NumwatchError, match="nested at most 40 deep"):
        Plan("fp8", source={"steps": endless}).save(path)
    with pytest.raises(NumwatchError, match="half a surrogate pair"):
        Plan("fp8", source={"run": "\ud800"}).save(path)
    with pytest.raises(NumwatchError, match="at most 1000 characters; got 1001"):
        Plan("fp8", modules=(ModulePlan("a" * 1001),)).save(path)
    assert load_plan(path) == Plan("fp8")


def test_ten_thousand_modules_load(tmp_path):
    operands = {role: predicted(reason="fits") for role in ("input", "weight", "grad_output")}
    names = (f"model.layers.{at}.mlp.down_proj" for at in range(10_000))
    plan = Plan("fp8", modules=tuple(ModulePlan(name, operands) for name in names))
    path = tmp_path / "plan.yaml"
    plan.save(path)
    assert path.stat().st_size < LARGEST / 3
    start = time.perf_counter()
    assert load_plan(path) == plan
    assert time.perf_counter() - start < 60


def test_a_huge_file_is_refused_by_its_size(tmp_path):
    path = tmp_path / "plan.yaml"
    with path.open("wb") as file:
        file.truncate(2**30)  # a hole: takes no disk
    with pytest.raises(NumwatchError, match=r"plan.yaml: a plan has at most 32 MiB; this is larg"):
        load_plan(path)


def test_files_that_can_not_be_read_or_written(tmp_path):
    with pytest.raises(NumwatchError, match=r"none.yaml: can't read a plan: No such file"):
        load_plan(tmp_path / "none.yaml")
    with pytest.raises(NumwatchError, match="can't read a plan: Is a directory"):
        load_plan(tmp_path)
    with pytest.raises(NumwatchError, match="can't write the plan: No such file or directory"):
        Plan("fp8").save(tmp_path / "none" / "plan.yaml")
    (tmp_path / "latin.yaml").write_bytes("target: é".encode("latin-1"))
    with pytest.raises(NumwatchError, match="a plan is text in UTF-8; byte 8 is none"):
        load_plan(tmp_path / "latin.yaml")
    (tmp_path / "bom.yaml").write_text("version: 1\r\ntarget: fp8\r\n", encoding="utf-8-sig")
    assert load_plan(tmp_path / "bom.yaml") == Plan("fp8")


def test_a_directory_is_no_file_to_save_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NumwatchError, match="can't write the plan"):
        Plan("fp8").save(".")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_plan_is_not_written_through_a_link_of_its_temporary_name(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    (tmp_path / f".plan.yaml.{os.getpid()}.tmp").symlink_to(outside)
    Plan("fp8").save(tmp_path / "plan.yaml")
    assert outside.read_text() == "kept"
    assert not (tmp_path / "plan.yaml").is_symlink()
