"""Many tensors in one call, rows by number, and the threads that share the work."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bit_patterns import DTYPES

import numwatch.stats as nws
from numwatch.stats import cpu, threads
from numwatch.stats.threads import share_out

ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def noise(n):
    return torch.randn(n, generator=torch.Generator().manual_seed(n))


def group_of(dtype):
    """Tensors on the fast path and off it, few elements and many, rows among them twice."""
    ones = torch.tensor([1.0, -2.0, 0.0, math.inf, math.nan])
    tensors = [
        ones.to(dtype),
        torch.empty(0, dtype=dtype),
        torch.tensor(5.0).to(dtype),
        noise(12_000).to(dtype),
        noise(100).to(dtype)[::3],
        noise(64).double(),
        noise(2 * cpu._PART + 5).to(dtype),
        torch.nn.Parameter(noise(9).to(dtype)),
        noise(30).half().reshape(5, 6).T,
        noise(8).relu().to_sparse(),
    ]
    return tensors * 2


@ALL_DTYPES
@pytest.mark.parametrize("full", [True, False], ids=["full", "amax"])
@pytest.mark.parametrize("twice", [False, True], ids=["rows apart", "rows twice"])
def test_a_group_is_its_tensors_one_by_one(monkeypatch, dtype, full, twice):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(cpu, "_PART", 1 << 12)
    monkeypatch.setattr(cpu, "_AMAX_PART", 1 << 12)
    tensors = group_of(dtype)
    n = len(tensors)
    rows = [(7 * i) % n // (1 + twice) for i in range(n)]
    (counts, reals), (expected, expected_reals) = nws.new_rows(n), nws.new_rows(n)
    nws.accumulate_group(tensors, rows, counts, reals, full=full)
    one = nws.accumulate if full else nws.accumulate_amax
    for x, row in zip(tensors, rows, strict=True):
        one(x, expected, expected_reals, row)
    assert torch.equal(counts, expected)
    assert torch.equal(reals[:, : nws.SUM], expected_reals[:, : nws.SUM])
    assert torch.allclose(reals, expected_reals, rtol=1e-12, atol=1e-12)


def test_an_empty_group_adds_nothing():
    counts, reals = nws.new_rows(1)
    nws.accumulate_group([], [], counts, reals, full=True)
    assert not counts.any()


@pytest.mark.parametrize("row", [-1, 2])
@pytest.mark.parametrize("full", [True, False], ids=["full", "amax"])
def test_a_row_that_is_none(row, full):
    counts, reals = nws.new_rows(2)
    with pytest.raises(ValueError, match=rf"no row {row} .* got \[2, 262\] and \[2, 4\]"):
        (cpu.accumulate if full else cpu.accumulate_amax)(torch.ones(3), counts, reals, row)
    with pytest.raises(ValueError, match=f"no row {row} "):
        cpu.accumulate_group([torch.ones(3)], [row], counts, reals, full=full)
    with pytest.raises(ValueError, match="make rows with new_rows"):
        cpu.accumulate(torch.ones(3), counts[:, ::2], reals)
    assert not counts.any()


def test_items_are_shared_out_once_each():
    for workers in (1, 2, 5):
        taken = [[] for _ in range(workers)]
        share_out(range(100), [own.append for own in taken])
        assert sorted(item for own in taken for item in own) == list(range(100))


def test_nobody_waits_for_a_thread_that_does_not_come(monkeypatch):
    pool, gate = ThreadPoolExecutor(1), threading.Event()
    monkeypatch.setattr(threads, "_pool", lambda _: pool)
    busy = pool.submit(gate.wait)
    mine, others = [], []
    share_out(range(10), [others.append, mine.append])
    gate.set()
    assert busy.result()
    pool.shutdown()
    assert (mine, others) == (list(range(10)), [])


def test_a_worker_s_error_is_raised():
    def fails(item):
        raise ArithmeticError(item)

    with pytest.raises(ArithmeticError):
        share_out(range(4), [fails, fails])


@ALL_DTYPES
def test_rows_of_a_matrix_are_its_tensors_one_by_one(dtype):
    matrix = noise(5 * 700).to(dtype).reshape(5, 700)
    (counts, reals), (expected, expected_reals) = nws.new_rows(8), nws.new_rows(8)
    nws.accumulate_rows(matrix, 2, counts, reals)
    nws.accumulate_rows(matrix[:0], 2, counts, reals)
    for row, x in enumerate(matrix.unbind(), start=2):
        nws.accumulate(x, expected, expected_reals, row)
    assert torch.equal(counts, expected)
    assert torch.allclose(reals, expected_reals, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="no row 8 "):
        nws.accumulate_rows(matrix, 4, counts, reals)


@ALL_DTYPES
@pytest.mark.parametrize("full", [True, False], ids=["full", "amax"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_writer_adds_what_accumulate_does_or_nothing(monkeypatch, dtype, full, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    most = 2 * (cpu._PART if full else cpu._AMAX_PART)
    tensors = [*group_of(dtype), torch.ones(5, dtype=torch.int64), torch.ones(3) * 2j]
    tensors.append(torch.ones(2, dtype=torch.complex64).conj().imag)
    tensors += [noise(most - 1).to(dtype), noise(most).to(dtype)]
    (counts, reals), (expected, expected_reals) = nws.new_rows(2), nws.new_rows(2)
    writer = nws.row_writer(counts, reals, full=full)
    one = nws.accumulate if full else nws.accumulate_amax
    added = []
    for x in tensors:
        address, n = writer.look(x)
        if address:
            assert n == x.numel()
            writer.put(address, n, x.dtype, 1)
            one(x, expected, expected_reals, 1)
            added.append(n)
    sizes = [5, 1, 12_000, 2 * cpu._PART + 5] * 2 + [most - 1, most]
    few = [n for n in sizes if threads == 1 or n < most]  # the rest threads would share
    assert added == (few if dtype in (torch.float32, torch.bfloat16, torch.float16) else [])
    assert torch.equal(counts, expected)
    assert torch.allclose(reals, expected_reals, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_writer_takes_no_tensor_without_memory_of_its_own():
    writer = nws.row_writer(*nws.new_rows(1), full=True)
    taken = []

    def see(x):
        taken.append(writer.look(x))
        return x.sum()

    torch.func.vmap(see)(torch.ones(3, 4))
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    assert taken == [(0, 0)]
    assert writer.look(freed) == (0, 0)
    assert writer.look(torch.empty(4, device="meta")) == (0, 0)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided)
    assert writer.look(nested) == (0, 0)
