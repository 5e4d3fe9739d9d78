"""Several ranks under Hugging Face's Trainer."""

import pytest
from launch import run_ranks

import numwatch


@pytest.mark.slow
def test_two_ranks_train_alike_with_numwatch_and_are_joined(tmp_path):
    outputs = run_ranks("huggingface_ranks.py", 2, tmp_path, timeout=280)
    assert all("same True" in output for output in outputs)
    run = numwatch.open_run(tmp_path)
    assert run.steps()["step"].to_pylist() == [0, 1, 2, 3]
    assert run.device == "cpu on 2 ranks"
    assert set(run.tensors(slot="body:input")["numel"].to_pylist()) == {2 * 8 * 8}
    assert set(run.tensors(slot="body:weight")["numel"].to_pylist()) == {8 * 16}
