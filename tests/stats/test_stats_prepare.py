"""Any tensor a user may have: same statistics as its dense contiguous copy."""

import pytest
import torch
import torch.distributed as dist
from bit_patterns import DTYPES, assert_same, expected_stats
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor

from numwatch.errors import NumwatchError
from numwatch.stats import NotWatchedError, is_watched_dtype, tensor_stats
from numwatch.stats.prepare import address_of, dense, is_flat


def data(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Tagged(torch.Tensor):
    """A subclass that carries nothing but its name."""


VIEWS = {
    "0-d": torch.tensor(-3.0),
    "empty": torch.empty(0, 4),
    "matrix": data(5, 7),
    "transposed": data(5, 7).T,
    "strided": data(40)[::3],
    "reversed dims": data(2, 3, 4).permute(2, 0, 1),
    "channels last": data(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": data(1, 5).expand(4, 5),
    "scalar expanded": torch.tensor(2.0).expand(3, 3),
    "sliced": data(6, 6)[1:4, 2:],
    "unfolded": data(10).unfold(0, 4, 1),
    "parameter": nn.Parameter(data(3, 3)),
    "subclass": data(3, 3).as_subclass(Tagged),
    "requires grad": data(3, 3).requires_grad_(),
    "negated view": torch.view_as_complex(data(4, 2)).conj().imag,
    "size-1 dims": data(4, 1, 3).transpose(0, 1),
}


@pytest.mark.parametrize("x", VIEWS.values(), ids=VIEWS)
def test_views(x):
    plain = torch.tensor(x.detach().tolist(), dtype=x.dtype).reshape(x.shape)
    assert_same(tensor_stats(x), expected_stats(plain))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["transposed", "channels last", "expanded", "0-d", "empty"])
def test_views_of_every_dtype(name, dtype):
    x = VIEWS[name]
    x = x[:1].to(dtype).expand(x.shape) if name == "expanded" else x.to(dtype)
    assert_same(tensor_stats(x), expected_stats(x.contiguous()))


IN_ONE_PIECE = {
    *("0-d", "empty", "matrix", "parameter", "requires grad", "size-1 dims"),
    *("transposed", "reversed dims", "channels last"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_is_read_where_it_lies(name):
    x = VIEWS[name]
    assert is_flat(x) == (name in IN_ONE_PIECE)
    flat, _ = dense(x)
    assert is_flat(flat)
    assert address_of(flat) == flat.data_ptr()


def test_memory_that_is_gone_is_not_read():
    x = data(100)
    view = x[10:20]
    x.untyped_storage().resize_(0)
    for gone in (x, view, torch._efficientzerotensor((3,))):
        for blocks in ((), (16,)):
            with pytest.raises(NotWatchedError, match="without memory of its own"):
                tensor_stats(gone, blocks=blocks)


@pytest.mark.parametrize("name", ["matrix", "transposed", "channels last", "0-d", "parameter"])
def test_dense_memory_is_shared_not_copied(name):
    flat, left_out = dense(VIEWS[name])
    assert flat.data_ptr() == VIEWS[name].data_ptr()
    assert flat.is_contiguous()
    assert flat.dim() == 1
    assert type(flat) is torch.Tensor
    assert not flat.requires_grad
    assert left_out == 0


@pytest.fixture
def sparse_matrix():
    x = data(6, 8)
    return x.where(x > 0.5, 0.0)


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_sparse_layouts_count_their_implicit_zeros(layout, sparse_matrix):
    block = (2, 4) if layout.startswith("bs") else None
    x = sparse_matrix.to_sparse(layout=getattr(torch, f"sparse_{layout}"), blocksize=block)
    assert_same(tensor_stats(x), expected_stats(sparse_matrix))


def test_uncoalesced_entries_are_added_before_counting():
    x = torch.sparse_coo_tensor([[0, 0, 2]], [1.0, 2.0, 5.0], (4,), check_invariants=True)
    assert_same(tensor_stats(x), expected_stats(torch.tensor([3.0, 0.0, 5.0, 0.0])))


def test_hybrid_sparse_embedding_gradient():
    layer = nn.Embedding(10, 3, sparse=True)
    layer(torch.tensor([1, 1, 4])).sum().backward()
    grad = layer.weight.grad
    assert_same(tensor_stats(grad), expected_stats(grad.to_dense()))


def test_nested_tensor():
    parts = [data(2, 3), data(4, 3)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    assert_same(tensor_stats(x), expected_stats(torch.cat(parts)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_strided_nested_tensors_are_refused():
    x = torch.nested.nested_tensor([data(2, 3), data(4, 3)], layout=torch.strided)
    for blocks in ((), (4,)):
        with pytest.raises(NotWatchedError, match=r"layout=torch\.jagged"):
            tensor_stats(x, blocks=blocks)


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


# torch 2.6 does so of every DTensor on a CPU.
@pytest.mark.filterwarnings("ignore:DTensor random operators may not have complete support")
def test_dtensor_gives_its_local_shard(mesh):
    x = data(4, 6)
    sharded = distribute_tensor(x, mesh, [Shard(0)])
    assert_same(tensor_stats(sharded), expected_stats(x))
    assert_same(tensor_stats(nn.Parameter(sharded)), expected_stats(x))


@pytest.mark.parametrize(
    "x",
    [torch.arange(3), torch.tensor([True]), torch.zeros(2, dtype=torch.complex64)],
    ids=["int64", "bool", "complex64"],
)
def test_other_dtypes_are_refused_in_one_line(x):
    assert not is_watched_dtype(x.dtype)
    with pytest.raises(NotWatchedError, match=str(x.dtype)[6:]) as caught:
        tensor_stats(x)
    assert isinstance(caught.value, (NumwatchError, TypeError))
    assert "\n" not in str(caught.value)


def test_meta_tensors_are_refused():
    with pytest.raises(NotWatchedError, match="meta"):
        tensor_stats(torch.empty(3, device="meta"))
