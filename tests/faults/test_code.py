"""Code that fails beside numwatch or in it: the user's error stays, numwatch's own is a warning."""

import sys
import time

import pytest
import torch
from faults_harness import EPOCH, STEPS, assert_harmless, assert_same, net, steps_of, train

import numwatch
from numwatch import session
from numwatch.stats import cpu, on_gpu, reference
from numwatch.watch import Watch


@pytest.fixture(scope="module")
def bare():
    return train()


class Boom(Exception):  # noqa: N818  # the user's own
    pass


def raises_at(step, error):
    """A user's hook that raises at a step."""
    calls = iter(range(1000))

    def hook(*_):
        if next(calls) == step:
            raise error

    return hook


@pytest.mark.parametrize("error", [Boom("of the user's"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_in_a_user_s_hook_is_the_user_s(error, tmp_path):
    watched = train(tmp_path, hook=raises_at(EPOCH + 2, error))
    alone = train(hook=raises_at(EPOCH + 2, error))
    assert watched.error is error
    assert_same(watched, alone)
    assert watched.hooks == 0
    assert watched.warned == []
    steps, problems = steps_of(tmp_path)
    assert (steps[: EPOCH + 2], problems) == (list(range(EPOCH + 2)), [])
    told = [each.get("text") for each in numwatch.open_run(tmp_path).events()]
    assert ("Boom: of the user's" in told) == isinstance(error, Boom)


def test_ctrl_c_inside_numwatch_s_own_code_is_not_swallowed(tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    def before(step):
        if step == EPOCH + 1:
            break_kernels(monkeypatch, interrupted)

    found = train(tmp_path, before=before)
    assert isinstance(found.error, KeyboardInterrupt)
    assert found.hooks == 0
    assert found.warned == []
    steps, problems = steps_of(tmp_path)
    assert (steps[: EPOCH + 1], problems) == (list(range(EPOCH + 1)), [])


def break_kernels(monkeypatch, instead):
    """Whatever measures a tensor on a CPU does something else."""
    for name in ("accumulate", "accumulate_amax", "accumulate_group", "accumulate_rows"):
        monkeypatch.setattr(cpu, name, instead)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), Boom("inside")],
    ids=["device memory", "memory", "any other"],
)
def test_memory_that_runs_out_in_a_kernel_ends_the_watching_alone(
    error, bare, tmp_path, monkeypatch
):
    def before(step):
        if step == EPOCH + 1:

            def fails(*_args, **_kwargs):
                raise error

            break_kernels(monkeypatch, fails)

    found = train(tmp_path, before=before)
    assert_harmless(found, bare, type(error).__name__)
    steps, problems = steps_of(tmp_path)
    assert (steps[:EPOCH], problems) == (list(range(EPOCH)), [])


def test_a_clock_that_runs_backwards(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", iter(range(10**9, 0, -3600)).__next__)
    found = train(tmp_path)
    assert_same(found, bare)
    assert found.warned == []
    steps = numwatch.open_run(tmp_path).steps()
    assert steps["step"].to_pylist() == list(range(STEPS))
    for name in ("step_seconds", "numwatch_seconds"):
        assert all(0 <= seconds < 60 for seconds in steps[name].to_pylist())


WITHOUT_NUMBA = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
if sys.argv[3] == "missing":
    sys.modules["numba"] = None
else:
    import numba
    def broken(*args, **kwargs):
        raise numba.core.errors.LoweringError("no LLVM here")
    from numba.core.registry import CPUDispatcher
    CPUDispatcher.compile = broken
    CPUDispatcher._compile_for_args = broken
from faults_harness import train
import numwatch, torch
bare, found = train(), train(sys.argv[2])
run = numwatch.open_run(sys.argv[2])
same = all(map(torch.equal, bare.numbers, found.numbers))
print(found.error, same, found.hooks, run.steps().num_rows, run.tensors().num_rows > 100)
print(*found.warned, sep="\\n")
"""


@pytest.mark.parametrize("how", ["missing", "broken"])
def test_without_numba_a_run_is_watched_by_the_reference_and_told_so_once(how, tmp_path):
    import subprocess
    from pathlib import Path

    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", WITHOUT_NUMBA, here, str(tmp_path), how]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result, *warned = ended.stdout.splitlines()
    assert result == f"None True 0 {STEPS} True"
    assert len(warned) == 1, warned
    assert "since numba does not work here" in warned[0]


def test_where_triton_can_t_compile_the_reference_steps_in_with_one_warning(monkeypatch):
    from numwatch import stats

    class Broken:
        def __getattr__(self, name):
            def fails(*_args, **_kwargs):
                raise RuntimeError("in between\nPTX assembler failed")

            return fails

    monkeypatch.setattr(on_gpu, "_has_triton", lambda: True)
    monkeypatch.setattr(on_gpu, "_refused", set())
    for module in ("launch", "group", "block_launch"):
        monkeypatch.setitem(sys.modules, f"numwatch.stats.gpu.{module}", Broken())
        monkeypatch.setattr(f"numwatch.stats.gpu.{module}", Broken(), raising=False)
    x = torch.tensor([1.0, -2.0, torch.inf])
    (counts, reals), (expected, expected_reals) = stats.new_rows(1), stats.new_rows(1)
    with pytest.warns(RuntimeWarning, match="Triton does not work here") as caught:  # noqa: PT031  # each may warn
        for _ in range(3):
            on_gpu.accumulate(x, counts, reals)
            on_gpu.accumulate_amax(x, counts, reals)
            on_gpu.accumulate_group([x], [0], counts, reals, full=True)
    for _ in range(3):
        reference.accumulate(x, expected, expected_reals)
        reference.accumulate_amax(x, expected, expected_reals)
        reference.accumulate(x, expected, expected_reals)
    assert torch.equal(counts, expected)
    assert torch.equal(reals, expected_reals)
    assert len(caught) == 1
    assert "PTX assembler failed" in str(caught[0].message)


@pytest.mark.parametrize(("error", "strict"), [(KeyboardInterrupt, False), (ValueError, True)])
def test_what_ends_the_putting_on_of_hooks_leaves_none(error, strict, tmp_path, monkeypatch):
    class Interrupted(Watch):
        def resume(self):
            super().resume()
            raise error

    monkeypatch.setattr(session, "Watch", Interrupted)
    found = train(tmp_path, strict=strict)
    assert isinstance(found.error, error)
    assert found.hooks == 0
    assert numwatch.open_run(tmp_path).problems == []


def test_the_user_s_default_device_is_not_numwatch_s(tmp_path):
    """`torch.set_default_device("cuda")`, say, of a script whose model is on the CPU."""
    model, batch = net(), torch.randn(16, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(batch).square().mean().backward()
    optimizer.step()  # which makes its state where that belongs
    with (
        torch.device("meta"),
        numwatch.watch(
            model, optimizer, dir=tmp_path, every_n_steps=1, summary=False, strict=True
        ) as watch,
    ):
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    run = numwatch.open_run(tmp_path)
    assert run.steps()["step"].to_pylist() == [0, 1]
    assert run.rows("updates") > 0
    assert run.rows("states") > 0
