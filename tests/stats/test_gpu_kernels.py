"""The GPU kernels on a GPU: exact, without a synchronisation, captured and replayed."""

import pytest
import torch
from triton_truth import assert_agrees, assert_rows_agree, random_bits

import numwatch.stats as nws
from numwatch.stats import block_reference, on_gpu
from numwatch.stats.block_layout import BLOCK_KINDS
from numwatch.stats.dtypes import WATCHED_DTYPES, every_kind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ALL_DTYPES = pytest.mark.parametrize("dtype", WATCHED_DTYPES, ids=str)


def on_cpu(rows):
    return [part.cpu() for part in rows]


@ALL_DTYPES
def test_the_kernels_pass_their_check(dtype):
    nws.warm_up([dtype], "cuda")
    assert not on_gpu._refused


@ALL_DTYPES
@pytest.mark.parametrize("n", [0, 1, 4095, 4097, 1_000_003, 20_000_000])
def test_equal_to_the_reference(dtype, n):
    x = random_bits(dtype, n + 3).cuda()[3:]
    assert_agrees(nws, x)
    assert_agrees(nws, x, amax_only=True)


@ALL_DTYPES
def test_strides(dtype):
    x = random_bits(dtype, 96 * 1000).cuda().view(96, 1000)
    for y in (x.T, x[:, 16:80], x[:, 3:70], x[::3, ::2], x[0].expand(9, 1000)):
        assert_agrees(nws, y)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16], ids=str)
def test_more_than_2_to_the_31_elements(dtype):
    n = 2**31 + 1
    if torch.cuda.mem_get_info()[0] < 2 * n * dtype.itemsize:
        pytest.skip("needs more free memory")
    part = every_kind(dtype).cuda()
    x = torch.zeros(n, dtype=torch.uint8, device="cuda") if dtype.itemsize == 1 else None
    x = torch.zeros(n, dtype=dtype, device="cuda") if x is None else x.view(dtype)
    x[: part.numel()] = part
    x[-part.numel() :] = part
    counts, reals = nws.new_rows(1, "cuda")
    nws.accumulate(x, counts, reals)
    expected = nws.new_rows(1)
    for _ in range(2):
        nws.accumulate(part.cpu(), *expected)
    expected[0][0, nws.CALLS] = 1
    expected[0][0, nws.NUMEL] = n
    expected[0][0, nws.ZEROS] += n - 2 * part.numel()
    assert_rows_agree(on_cpu((counts, reals)), expected)


def test_counts_are_the_same_every_time():
    x = torch.randn(1 << 24, device="cuda", dtype=torch.bfloat16)
    rows = [nws.new_rows(1, "cuda") for _ in range(5)]
    for own in rows:
        nws.accumulate(x, *own)
    assert all(torch.equal(own[0], rows[0][0]) for own in rows)


@ALL_DTYPES
def test_nothing_waits(dtype):
    tensors = [random_bits(dtype, n).cuda() for n in (5, 70_000)]
    counts, reals = nws.new_rows(2, "cuda")
    blocks = nws.new_block_rows(1, "cuda")[0]
    mode = torch.ones(1, dtype=torch.int32, device="cuda")

    def everything():
        nws.accumulate(tensors[1], counts, reals)
        nws.accumulate_amax(tensors[1], counts, reals)
        nws.accumulate_gated(tensors[1], counts, reals, 0, mode)
        nws.accumulate_group(tensors, [0, 1], counts, reals, full=True)
        nws.accumulate_blocks(tensors[1], blocks)

    everything()  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert not on_gpu._refused


def test_a_graph_follows_its_gate():
    x = torch.randn(100_000, device="cuda", dtype=torch.bfloat16)
    counts, reals = nws.new_rows(1, "cuda")
    mode = torch.zeros(1, dtype=torch.int32, device="cuda")
    nws.accumulate_gated(x, counts, reals, 0, mode)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nws.accumulate_gated(x, counts, reals, 0, mode)
    expected = nws.new_rows(1)
    for does in (0, 2, 1, 0, 2):
        x.normal_()
        mode.fill_(does)
        graph.replay()
        if does:
            (nws.accumulate if does == 2 else nws.accumulate_amax)(x.cpu(), *expected)
    assert_rows_agree(on_cpu((counts, reals)), expected)


def test_a_group_is_one_launch_a_dtype():
    sizes = [1 + 977 * i for i in range(300)]
    dtypes = (torch.float32, torch.bfloat16)
    tensors = [torch.randn(n, device="cuda").to(dtypes[n % 2]) for n in sizes]
    rows = nws.new_rows(300, "cuda")
    nws.accumulate_group(tensors, range(300), *rows, full=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        nws.accumulate_group(tensors, range(300), *rows, full=True)
        torch.cuda.synchronize()
    assert sum("sweep_group" in event.name for event in profile.events()) == 2
    expected = nws.new_rows(300)
    for _ in range(2):
        for row, x in enumerate(tensors):
            nws.accumulate(x.cpu(), *expected, row)
    assert_rows_agree(on_cpu(rows), expected)


@ALL_DTYPES
def test_blocks(dtype):
    x = random_bits(dtype, 300 * 1000).view(300, 1000)
    for y in (x, x.T, x[:, 5:]):
        rows, expected = nws.new_block_rows(1, "cuda")[0], nws.new_block_rows(1)[0]
        nws.accumulate_blocks(y.cuda(), rows)
        block_reference.accumulate_blocks(y, expected, BLOCK_KINDS)
        assert torch.equal(rows.cpu(), expected)
