"""Many tensors in one launch, and passes that a gate on the device decides."""

import pytest
import torch
from triton_truth import SOME_DTYPES, assert_rows_agree, random_bits

import numwatch.stats as nws
from numwatch.stats import on_gpu, reference
from numwatch.stats.gpu import group, launch

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
OF_SOME_DTYPES = pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
CPU = torch.device("cpu")


def one_by_one(tensors, rows, n, *, full):
    expected = nws.new_rows(n)
    for x, row in zip(tensors, rows, strict=True):
        (reference.accumulate if full else reference.accumulate_amax)(x, *expected, row)
    return expected


@OF_SOME_DTYPES
@pytest.mark.parametrize("full", [True, False])
def test_a_group_equals_its_tensors_one_by_one(dtype, full):
    sizes = (3, 700, 0, 9001)  # the last one has two programs
    tensors = [random_bits(dtype, n, seed=n) for n in sizes]
    tensors[1] = tensors[1][1:]
    tensors.append(random_bits(dtype, 64).view(8, 8)[:, :3])
    rows = [4, 0, 2, 1, 1]
    actual = nws.new_rows(6)
    on_gpu.accumulate_group(tensors, rows, *actual, full=full)
    assert_rows_agree(actual, one_by_one(tensors, rows, 6, full=full))


def test_a_group_of_many_dtypes_launches_once_for_each(monkeypatch):
    launched = []
    kernel = group.kernels.sweep_group
    spy = type("Spy", (), {"__getitem__": lambda _, grid: launched.append(grid) or kernel[grid]})()
    monkeypatch.setattr(group.kernels, "sweep_group", spy)
    tensors = [random_bits(d, 9 + i) for i in range(3) for d in (torch.float32, torch.bfloat16)]
    actual = nws.new_rows(6)
    on_gpu.accumulate_group(tensors, range(6), *actual, full=True)
    assert launched == [(3,), (3,)]
    assert_rows_agree(actual, one_by_one(tensors, range(6), 6, full=True))


def test_addresses_may_change_between_groups():
    actual, expected = nws.new_rows(2), nws.new_rows(2)
    for seed in range(3):
        tensors = [random_bits(torch.float16, n, seed) for n in (100, 200)]
        on_gpu.accumulate_group(tensors, [0, 1], *actual, full=True)
        for row, x in enumerate(tensors):
            reference.accumulate(x, *expected, row)
    assert_rows_agree(actual, expected)


@pytest.mark.parametrize(
    "run", [launch.accumulate_gated, on_gpu.gated_by_masks, nws.accumulate_gated]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float8_e4m3fn], ids=str)
def test_a_gate_decides(run, dtype):
    actual, expected = nws.new_rows(3), nws.new_rows(3)
    mode = torch.zeros(1, dtype=torch.int32)
    for seed, does in enumerate([0, 2, 1, 0, 1, 2]):
        x = random_bits(dtype, 300, seed)
        mode.fill_(does)
        run(x, *actual, 2, mode)
        if does:
            (reference.accumulate if does == 2 else reference.accumulate_amax)(x, *expected, 2)
    assert_rows_agree(actual, expected)


def test_a_shut_gate_reads_nothing():
    counts, reals = nws.new_rows(1)
    nowhere = torch.empty(0).as_strided((0,), (1,))
    place = launch.place(nowhere)
    place = type(place)(place.tensor, 16, 0, 1 << 20)
    launch._sweep(place, counts, reals, 0, launch.kernels.GATED, torch.zeros(1, dtype=torch.int32))
    assert not counts.any()


@pytest.fixture
def first_use(monkeypatch):
    monkeypatch.setattr(on_gpu, "_refused", set())


@OF_SOME_DTYPES
@pytest.mark.usefixtures("first_use")
def test_the_kernels_pass_their_check(dtype):
    on_gpu.warm_up([dtype], CPU)
    assert not on_gpu._refused


@pytest.mark.usefixtures("first_use")
@pytest.mark.parametrize(("long", "expected"), [(0.0, ["told"]), (1e9, [])])
def test_it_is_told_once_where_the_first_launch_was_long(monkeypatch, long, expected):
    told = []
    monkeypatch.setattr(on_gpu, "_LONG", long)
    on_gpu.warm_up([torch.float16, torch.bfloat16], CPU, lambda: told.append("told"))
    assert told == expected


@pytest.mark.usefixtures("first_use")
def test_a_kernel_that_counts_wrongly_is_not_used(monkeypatch):
    monkeypatch.setattr(launch, "accumulate_amax", reference.accumulate)
    with pytest.warns(RuntimeWarning, match="Triton does not work here .float32: its kernels cou"):
        on_gpu.warm_up([torch.float32], CPU)
    assert on_gpu._refused == {torch.float32}


@pytest.mark.usefixtures("first_use")
def test_a_kernel_that_does_not_compile_is_told_of_once(monkeypatch):
    def fail(*args):
        raise ValueError("line 1\nPTX was not made")

    monkeypatch.setattr(launch, "accumulate", fail)
    actual, expected = nws.new_rows(1), nws.new_rows(1)
    with pytest.warns(RuntimeWarning, match="float32: PTX was not made"):
        on_gpu.accumulate(torch.ones(5), *actual)
    on_gpu.accumulate(torch.ones(5), *actual)  # warnings are errors: told of once
    for _ in range(2):
        reference.accumulate(torch.ones(5), *expected)
    assert_rows_agree(actual, expected)


@pytest.mark.usefixtures("first_use")
def test_what_is_not_watched_is_no_failure():
    with pytest.raises(nws.NotWatchedError):
        on_gpu.accumulate(torch.arange(3), *nws.new_rows(1))
    assert not on_gpu._refused
