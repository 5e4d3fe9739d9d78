"""What the audit notes of one step, against what is known of the model by hand."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from versions import needs_scaled_mm

from numwatch.schedule import Schedule
from numwatch.taps.audit import Audit
from numwatch.taps.flags import accumulation_flags
from numwatch.taps.gate import Gate
from numwatch.taps.gemms import Product, gradient_kind, is_blas_layout
from numwatch.watch import Watch

B, T, WIDTH, VOCABULARY = 2, 5, 8, 11


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch):
    monkeypatch.setattr("torch._dynamo.eval_frame.cached_backends", {})


def audited(model, step):
    audit = Audit(model, Gate(strict=True))
    audit.start()
    try:
        step()
    finally:
        audit.stop()
    assert torch._C._len_torch_dispatch_stack() == 0
    return audit.send().arrived()


def gemms(operations):
    return [(op.module, op.gemm, op.m, op.n, op.k) for op in operations if op.m is not None]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.again = False

    def weigh(self, x):
        return (self.q(x) @ self.k(x).mT).exp()

    def forward(self, x):
        if self.again:
            return checkpoint(self.weigh, x, use_reentrant=False)
        return self.weigh(x)


def test_products_of_a_linear_and_its_gradients():
    model = nn.Sequential(nn.Linear(WIDTH, VOCABULARY), nn.Linear(VOCABULARY, 3, bias=False))
    x = torch.randn(B, T, WIDTH)
    operations = audited(model, lambda: model(x).square().mean().backward())
    tokens = B * T
    assert sorted(gemms(operations)) == sorted(
        [
            ("0", "forward", tokens, VOCABULARY, WIDTH),
            ("1", "forward", tokens, 3, VOCABULARY),
            ("1", "dgrad", tokens, VOCABULARY, 3),
            ("1", "wgrad", 3, VOCABULARY, tokens),
            # The batch asks for no gradient, so that the first Linear has no dgrad.
            ("0", "wgrad", VOCABULARY, WIDTH, tokens),
        ]
    )
    assert [op.order for op in operations] == list(range(len(operations)))


def test_square_products_are_told_apart_by_what_they_read():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False))
    x = torch.randn(WIDTH, WIDTH)
    operations = audited(model, lambda: model(x).sum().backward())
    assert sorted(gemms(operations)) == sorted(
        (module, gemm, WIDTH, WIDTH, WIDTH)
        for module, gemm in (
            *(("0", gemm) for gemm in ("forward", "wgrad")),
            *(("1", gemm) for gemm in ("forward", "dgrad", "wgrad")),
        )
    )


@pytest.mark.parametrize("again", [False, True])
def test_attention_s_products_belong_to_it_and_a_recomputation_is_not_counted(again):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Attention())
    model[1].again = again
    x = torch.randn(B, T, WIDTH)
    operations = audited(model, lambda: model(x).sum().backward())
    forward = [op for op in operations if op.phase == "forward"]
    assert gemms(forward) == [
        ("0", "forward", B * T, WIDTH, WIDTH),
        ("1.q", "forward", B * T, WIDTH, WIDTH),
        ("1.k", "forward", B * T, WIDTH, WIDTH),
        ("1", "forward", T, T, WIDTH),
    ]
    assert all(op.count == 1 for op in forward if op.m is not None)
    backward = [(op.module, op.gemm, op.count) for op in operations if op.m and op not in forward]
    kinds = ("dgrad", "wgrad")
    # Of a square product whose operands were computed anew nothing tells which gradient it is.
    own = (None, None) if again else kinds
    expected = [("0", "wgrad", 1), *(("1", kind, 1) for kind in own)]
    expected += [(module, kind, 1) for module in ("1.q", "1.k") for kind in kinds]
    assert sorted(backward, key=str) == sorted(expected, key=str)
    assert [op.count for op in forward if op.operation == "aten.exp.default"] == [1]


def test_dtypes_are_those_that_autocast_chose():
    model = nn.Linear(WIDTH, 3)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            y = model(torch.randn(4, WIDTH))
        nn.functional.mse_loss(y.float(), torch.zeros(4, 3)).backward()

    by_name = {op.operation: op for op in audited(model, step)}
    linear = by_name["aten.addmm.default"]
    assert linear.dtypes == ("bfloat16",) * 3
    assert linear.shapes == ((3,), (4, WIDTH), (WIDTH, 3))
    assert (linear.output, linear.contiguous, linear.module) == ("bfloat16", True, "")
    assert by_name["aten.mse_loss.default"].dtypes == ("float32", "float32")


def test_micro_batches_add_to_the_count():
    model = nn.Linear(WIDTH, 3)

    def step():
        for _ in range(3):
            model(torch.randn(4, WIDTH)).sum().backward()

    operations = audited(model, step)
    assert {op.count for op in operations if op.gemm} == {3}


def test_neither_the_data_nor_a_metric_nor_the_optimizer_is_noted():
    model = nn.Linear(WIDTH, 3)
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        loss = model(torch.randn(4, WIDTH).mul(2).exp()).sum()
        with torch.no_grad():
            loss.log1p()
        loss.backward()
        optimizer.step()

    names = {op.operation.split(".")[1] for op in audited(model, step)}
    assert not names & {"randn", "mul", "exp", "log1p", "sqrt", "addcdiv_", "_foreach_sqrt"}
    assert "addmm" in names


def test_a_convolution_and_views():
    model = nn.Conv2d(3, 8, 3)
    operations = audited(model, lambda: model(torch.randn(2, 3, 6, 6)).flatten().sum().backward())
    (conv,) = [op for op in operations if op.operation == "aten.convolution.default"]
    assert conv.shapes == ((2, 3, 6, 6), (8, 3, 3, 3), (8,))
    assert conv.m is None
    assert "aten.view.default" not in {op.operation for op in operations}


@pytest.mark.parametrize(
    ("x", "amax"),
    [([1.0, -5.0], 2.71875), ([12.0, 0.0], float("inf")), ([float("nan"), 0.0], float("nan"))],
)
def test_results_of_half_precision_exp_are_measured(x, amax):
    model = nn.Identity()
    leaf = torch.tensor(x, dtype=torch.float16, requires_grad=True)
    operations = audited(model, lambda: model(leaf).exp().float().sum())
    (exp,) = [op for op in operations if op.operation == "aten.exp.default"]
    assert exp.amax == pytest.approx(amax, nan_ok=True)
    (total,) = [op for op in operations if op.operation == "aten.sum.default"]
    assert total.amax is None  # FP32


def test_a_square_by_hand_is_measured_and_other_products_are_not():
    leaf = torch.tensor([200.0], dtype=torch.float16, requires_grad=True)
    operations = audited(nn.Identity(), lambda: (leaf * leaf) + leaf * leaf.neg())
    amaxes = [op.amax for op in operations if op.operation == "aten.mul.Tensor"]
    assert amaxes == [40000.0, None]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.zeros(4, 6), True),
        (lambda: torch.zeros(4, 6).t(), True),
        (lambda: torch.zeros(4, 6)[:, :3], True),  # the leading dimension is wider
        (lambda: torch.zeros(3, 4, 6).transpose(0, 1), True),  # each matrix lies well
        (lambda: torch.zeros(4, 6)[:, ::2], False),
        (lambda: torch.zeros(6).expand(4, 6), False),
        (lambda: torch.zeros(4, 1), True),
        (lambda: torch.zeros(1, 6)[:, ::2], True),  # by columns, of one element each
    ],
)
def test_blas_layout(make, expected):
    assert is_blas_layout(make()) is expected


def test_the_kind_of_a_gradient():
    forward = Product(2, 3, 5, contiguous=True, places=(10, 20))
    assert gradient_kind(forward, Product(2, 5, 3, contiguous=True)) == "dgrad"
    assert gradient_kind(forward, Product(5, 2, 3, contiguous=True)) == "dgrad"  # transposed
    assert gradient_kind(forward, Product(3, 5, 2, contiguous=True)) == "wgrad"
    assert gradient_kind(forward, Product(2, 3, 5, contiguous=True)) is None
    assert gradient_kind(None, forward) is None


@needs_scaled_mm
def test_float8_linears_show_their_scaled_products():
    torchao = pytest.importorskip("torchao.float8")
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 48)).bfloat16()
    torchao.convert_to_float8_training(model)
    x = torch.randn(64, 16).bfloat16()
    operations = audited(model, lambda: model(x).sum().backward())
    scaled = [op for op in operations if op.operation == "aten._scaled_mm.default"]
    assert sorted(gemms(scaled)) == sorted(
        [
            ("0", "forward", 64, 32, 16),
            ("0", "dgrad", 64, 16, 32),  # which torchao computes though nobody asks for it
            ("0", "wgrad", 32, 16, 64),
            ("1", "forward", 64, 48, 32),
            ("1", "dgrad", 64, 32, 48),
            ("1", "wgrad", 48, 32, 64),
        ]
    )
    assert {op.dtypes[0] for op in scaled} == {"float8_e4m3fn", "float8_e5m2"}
    assert accumulation_flags(model)["float8_use_fast_accum"] == {
        "output": 2,
        "grad_input": 0,
        "grad_weight": 0,
    }


def test_flags_are_read_as_they_stand(monkeypatch):
    name = "allow_fp16_reduced_precision_reduction"
    before = getattr(torch.backends.cuda.matmul, name)
    for value in (False, True):
        setattr(torch.backends.cuda.matmul, name, value)
        try:
            assert accumulation_flags(nn.Identity())[f"cuda.matmul.{name}"] is value
        finally:
            setattr(torch.backends.cuda.matmul, name, before)


def test_parameters_that_are_not_made_yet_put_the_audit_off():
    # Torch can't make them under a dispatch mode.
    model = nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4), nn.LazyLinear(2))
    watch = Watch(model, Gate(strict=True), Schedule(1), audit=True)
    watch.attach()
    for step in range(2):
        watch.begin(step)
        model(torch.randn(8, 3)).sum().backward()
        watch.end()
    snapshots = watch.collect(everything=True)
    watch.detach()
    assert [bool(one.operations) for one in snapshots] == [False, True]
