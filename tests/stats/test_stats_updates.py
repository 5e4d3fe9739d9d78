"""Swallowed updates against closed forms, whole formats, real BF16 and FP16 sums and ml_dtypes."""

import math
from statistics import NormalDist

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from numwatch.errors import NumwatchError
from numwatch.formats import FORMATS, get_format, round_to_format
from numwatch.stats import updates
from numwatch.stats.updates import FIGURES, swallowing, update_shares

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STORAGES = [f for f in FORMATS.values() if f.signed and f.has_subnormals and not f.is_integer]
SMALL = [f for f in STORAGES if f.bits <= 8]
ML_DTYPES = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2": ml_dtypes.float8_e5m2,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
BY_NAME = pytest.mark.parametrize("fmt", STORAGES, ids=lambda f: f.name)


@pytest.fixture(autouse=True, scope="module", params=["loops", "operations"])
def _each_implementation(request):
    """Every test sees the CPU's loops, and the operations other devices take."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "operations":
            patch.setattr(updates, "by_loops", updates.by_operations)
        yield


def shares(before, intended, fmt, applied=None):
    """The shares of all elements together, whatever the shapes."""
    flat = [None if x is None else x.reshape(1, -1) for x in (before, intended, applied)]
    return update_shares(swallowing(flat[0], flat[1], fmt, flat[2])[0].tolist())


def one_by_one(before, intended, fmt, applied=None):
    """Figures of every element: a column for each name."""
    flat = [None if x is None else x.reshape(-1, 1) for x in (before, intended, applied)]
    return dict(zip(FIGURES, swallowing(flat[0], flat[1], fmt, flat[2]).T, strict=True))


def signs(shape):
    return torch.randint(0, 2, shape) * 2.0 - 1.0


def mantissas(fmt):
    """All values of one binade, [1, 2)."""
    bits = get_format(fmt).mantissa_bits
    return 1 + torch.arange(2**bits) / 2**bits


# Facts, T2: weights N(0, .02^2) held in the format, updates of one size and either sign.
T2 = [
    ("bf16", 1e-3, 0.0, 0.986),
    ("bf16", 1e-4, 0.118, 1.001),
    ("bf16", 3e-5, 0.696, 0.309),
    ("bf16", 1e-5, 0.845, 0.189),
    ("bf16", 1e-6, 0.981, 0.028),
    ("fp16", 1e-4, 0.0, None),
    ("fp16", 1e-5, 0.118, None),
    ("fp16", 1e-6, 0.846, None),
]


@pytest.mark.parametrize(("fmt", "lr", "told", "edq"), T2)
def test_t2(fmt, lr, told, edq):
    n, bits = 2_000_000, get_format(fmt).mantissa_bits
    half_steps = 2.0 ** (bits + 1)
    edge = 2.0 ** (math.floor(math.log2(half_steps * lr)) + 1)

    def above(magnitude):
        return 2 * NormalDist(0, 0.02).cdf(-magnitude)

    assert above(edge) == pytest.approx(told, abs=0.001)
    # What is stored as the edge itself is swallowed on its way up, where the grid is coarser.
    upper, lower = edge * (1 + 1 / half_steps), edge * (1 - 0.5 / half_steps)
    exact = (above(upper) + above(lower)) / 2
    before = (torch.randn(n) * 0.02).to(DTYPES[fmt]).float()
    found = shares(before, signs((n,)) * lr, fmt)
    assert found["swallowed"] == pytest.approx(exact, abs=4 * math.sqrt(exact / n) + 1e-6)
    assert found["swallowed"] == pytest.approx(told, abs=0.0015)
    assert found["ratio"] == pytest.approx(lr / 0.02, rel=0.01)
    if edq is not None:
        assert found["edq_normalised"] == pytest.approx(edq, abs=0.0015)
        assert found["edq"] == pytest.approx(edq * lr * math.sqrt(n), rel=0.02)


@pytest.mark.parametrize(("fmt", "steps"), [("bf16", 9), ("fp16", 12)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_limits_between_always_and_never_swallowed(fmt, steps, sign):
    w = mantissas(fmt)

    def swallowed(ratio):
        return one_by_one(w, sign * w * ratio, fmt)["swallowed"].bool()

    just_above = 1 + 2.0**-10
    assert swallowed(2.0**-steps).all()
    # Below 1 the grid is finer: 1 is the first to move.
    assert swallowed(2.0**-steps * just_above)[0] == (sign > 0)
    # Above 1 a tie, which stays at the even mantissa.
    assert swallowed(2.0 ** -(steps - 1))[0] == (sign > 0)
    assert not swallowed(2.0 ** -(steps - 1) * just_above).any()


@pytest.mark.parametrize(
    ("fmt", "steps", "share"), [("bf16", 9, 54 / 128), ("fp16", 12, 425 / 1024)]
)
def test_at_the_geometric_midpoint_42_percent_of_the_mantissas_swallow(fmt, steps, share):
    # |D / w| = sqrt(2^-9 * 2^-8) for BF16: swallowed where the mantissa is below sqrt(2).
    w = mantissas(fmt)
    found = shares(w, w * 2.0 ** -(steps - 0.5), fmt)["swallowed"]
    assert found == share
    assert found == pytest.approx(math.sqrt(2) - 1, abs=2.0 ** -get_format(fmt).mantissa_bits)
    assert round(found, 2) == 0.42


def test_stochastic_rounding_keeps_0_128_of_a_step_of_0_001_from_1():
    found = shares(torch.ones(1), torch.full((1,), 0.001), "bf16")
    assert found["swallowed"] == 1.0
    assert found["stochastic_kept"] == pytest.approx(0.128, abs=1e-4)
    draws = 100_000
    rounded = round_to_format(
        torch.full((draws,), 1.001),
        "bf16",
        rounding="stochastic",
        generator=torch.Generator().manual_seed(0),
    )
    moved = (rounded != 1.0).double().mean().item()
    assert moved == pytest.approx(found["stochastic_kept"], abs=5 * math.sqrt(0.128 / draws))


@pytest.mark.parametrize(
    "fmt", [*SMALL, get_format("fp16"), get_format("bf16")], ids=lambda f: f.name
)
@pytest.mark.parametrize("fraction", [2.0**-12, 0.125, 0.5, 0.99, 1.0, 3.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_chance_to_move_from_every_value_of_a_format(fmt, fraction, sign):
    codes = np.arange(2**fmt.bits, dtype=np.uint16 if fmt.bits == 16 else np.uint8)
    with np.errstate(invalid="ignore"):
        grid = np.unique(codes.view(ML_DTYPES[fmt.name]).astype(np.float64))
    grid = grid[np.abs(grid) < 2.0**100][::sign]  # FP32 holds sums of such
    w, gap = grid, np.abs(np.diff(grid))
    gap = np.append(gap, gap[-1])
    before = torch.from_numpy(w.copy()).float()
    intended = (before.double() + sign * fraction * torch.from_numpy(gap)).float() - before
    # Told that nothing arrived, all that did not saturate count as swallowed.
    found = one_by_one(before, intended, fmt, torch.zeros_like(before))
    moved = (before + intended).double().numpy() - w
    expected = np.minimum(np.abs(moved) / gap, 1.0)
    if abs(w[-1]) == fmt.max:
        expected[-1] = 0.0
    kept = found["stochastic_kept"].numpy()
    np.testing.assert_allclose(
        kept[intended.numpy() != 0], expected[intended.numpy() != 0], rtol=1e-6
    )


@pytest.mark.parametrize("part", [0.1, 0.3, 0.45, 0.7, 1.5])
def test_a_deferred_update_waits_until_the_copy_of_its_weight_moves(part):
    # FP32 weights that lie anywhere between two BF16 values: the copy of 1 - part has not moved.
    n = 400_000
    before = 1 + torch.rand(n) * (1 - 2.0**-6)
    found = shares(before, torch.full((n,), part * 2.0**-7), "bf16")
    expected = max(1 - part, 0.0)
    assert found["deferred"] == pytest.approx(expected, abs=5 * math.sqrt(expected / n))
    assert found["swallowed"] == (1.0 if part < 0.5 else 0.0)


@BY_NAME
def test_the_whole_format_against_ml_dtypes(fmt):
    before = torch.randn(5, 4000) * torch.logspace(-6, 3, 5)[:, None]
    intended = before * signs(before.shape) * torch.exp2(-12 * torch.rand(before.shape))
    intended[:, ::7] = 0.0
    figures = swallowing(before, intended, fmt)
    for row, w, delta in zip(figures, before.numpy(), intended.numpy(), strict=True):
        scale = np.float32(fmt.max) / np.abs(w).max() if fmt.bits <= 8 else np.float32(1)

        def rounded(x):
            if fmt.name == "fp32":
                return x
            x = np.clip(x, -fmt.max, fmt.max).astype(np.float32)
            return x.astype(ML_DTYPES[fmt.name]).astype(np.float32)

        low = rounded(w * scale)
        arrived = rounded(low + delta * scale) - low
        nonzero = delta != 0
        found = dict(zip(FIGURES, row.tolist(), strict=True))
        assert found["nonzero"] == nonzero.sum()
        assert found["swallowed"] == (nonzero & (arrived == 0)).sum()
        assert found["deferred"] == (nonzero & (rounded((w + delta) * scale) == low)).sum()
        wide = arrived.astype(np.float64) / np.float64(scale)
        assert found["delta_dot"] == pytest.approx(wide @ delta.astype(np.float64), rel=1e-9)
        assert found["delta_sq"] == pytest.approx(np.square(delta.astype(np.float64)).sum())
        assert found["applied_sq"] == found["delta_sq"]
        assert found["weight_sq"] == pytest.approx(np.square(w.astype(np.float64)).sum())


@pytest.mark.parametrize("fmt", DTYPES)
def test_what_really_arrived_is_what_was_foreseen(fmt):
    before = (torch.randn(3, 5000) * 0.02).to(DTYPES[fmt])
    intended = torch.randn(3, 5000) * 1e-5
    applied = before.clone().add_(intended).float() - before.float()
    really = swallowing(before.float(), intended, fmt, applied)
    foreseen = swallowing(before.float(), intended, fmt)
    names = dict(zip(FIGURES, zip(really.T, foreseen.T, strict=True), strict=True))
    for name in ("nonzero", "swallowed", "stochastic_kept", "delta_dot", "delta_sq", "weight_sq"):
        assert torch.equal(*names[name]), name
    assert names["deferred"][0].isnan().all()
    assert torch.allclose(names["applied_sq"][0], applied.double().square().sum(1))
    assert update_shares(really[0].tolist())["deferred"] is None


def test_an_update_that_never_came_counts_as_swallowed():
    found = shares(torch.ones(4), torch.full((4,), 0.5), "bf16", applied=torch.zeros(4))
    assert (found["swallowed"], found["ratio"], found["edq"]) == (1.0, 0.0, 0.0)
    assert found["stochastic_kept"] == 1.0


def test_what_exceeds_the_largest_value_saturates():
    found = shares(torch.tensor([65504.0]), torch.tensor([1e6]), "fp16")
    assert (found["swallowed"], found["stochastic_kept"]) == (1.0, 0.0)
    # The largest weight of a row lies at the largest value of the scaled formats.
    found = one_by_one(torch.tensor([3.0, -3.0]), torch.tensor([1.0, -1.0]), "e4m3")
    assert found["swallowed"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("fmt", ["e4m3", "e5m2"])
def test_weights_that_are_all_zero_take_scale_1(fmt):
    steps = get_format(fmt).smallest_subnormal * torch.tensor([0.25, 0.5, 0.75, 3.0])
    figures = dict(zip(FIGURES, swallowing(torch.zeros(1, 4), steps[None], fmt)[0], strict=True))
    assert (figures["swallowed"], figures["stochastic_kept"]) == (2, 0.75)
    assert update_shares([float(figures[name]) for name in FIGURES])["ratio"] is None


@BY_NAME
@pytest.mark.parametrize("where", ["before", "intended", "applied"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out_of_everything(fmt, where, value):
    tensors = {
        "before": torch.randn(2, 100) * 0.02,
        "intended": torch.randn(2, 100) * 1e-3,
        "applied": torch.randn(2, 100) * 1e-3,
    }
    if where != "applied":
        del tensors["applied"]
    expected = swallowing(storage=fmt, **tensors)
    spoiled = {name: torch.cat([x, torch.ones(2, 1) * 0.01], 1) for name, x in tensors.items()}
    spoiled[where][0, -1] = value
    found = swallowing(storage=fmt, **spoiled)
    torch.testing.assert_close(found[0], expected[0], equal_nan=True)
    assert found[1, 0] == expected[1, 0] + 1


NUMBERS = st.floats(-1.0, 1.0, width=16).filter(lambda x: x == 0 or abs(x) > 1e-3)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS.map(lambda x: x / 64)), min_size=1, max_size=40)


def row(pairs):
    return (torch.tensor([[pair[i] for pair in pairs]]) for i in (0, 1))


@given(ROWS, st.sampled_from(STORAGES), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_neither_order_nor_updates_of_zero_matter(pairs, fmt, random):
    expected = swallowing(*row(pairs), fmt)[0, :-1]
    shuffled = [*pairs, *((w, 0.0) for w, _ in pairs)]
    random.shuffle(shuffled)
    torch.testing.assert_close(
        swallowing(*row(shuffled), fmt)[0, :-1], expected, rtol=1e-12, atol=0
    )


@given(ROWS, st.sampled_from(["bf16", "fp16", "e4m3", "e5m2", "e2m1"]), st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_a_power_of_two_changes_nothing_but_the_unit(pairs, fmt, exponent):
    before, intended = row(pairs)
    assume(before.any())  # else there is no scale
    # Where FP16 is subnormal its steps do not grow with the values.
    assume(fmt != "fp16" or min(before.abs().min(), (before + intended).abs().min()) > 2.0**-13)
    small, large = (
        update_shares(swallowing(before * factor, intended * factor, fmt)[0].tolist())
        for factor in (1.0, 2.0**exponent)
    )
    for name in ("nonzero", "ratio", "swallowed", "stochastic_kept", "deferred", "edq_normalised"):
        assert large[name] == small[name], name
    if small["edq"] is not None:
        assert large["edq"] == pytest.approx(small["edq"] * 2.0**exponent, rel=1e-12)


@BY_NAME
def test_rows_know_nothing_of_each_other(fmt):
    # Rows and columns of more than one chunk.
    before = torch.randn(3, 2**16 + 5) * torch.tensor([[1e-4], [1.0], [1e3]])
    intended = before * torch.randn(before.shape) * 1e-2
    together = swallowing(before, intended, fmt)
    apart = torch.cat([swallowing(before[i : i + 1], intended[i : i + 1], fmt) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=0)
    if fmt.bits > 8:
        sums = torch.stack(list(one_by_one(before, intended, fmt).values()))
        sums = sums.reshape(len(FIGURES), 3, -1).sum(2).T
        torch.testing.assert_close(together, sums, rtol=1e-9, atol=0)


@BY_NAME
def test_no_device_is_waited_for_and_nothing_is_changed(fmt, no_sync):
    before, intended = torch.randn(2, 50), torch.randn(2, 50)
    before.requires_grad_()
    copies = before.clone(), intended.clone()
    with no_sync():
        figures = swallowing(before, intended, fmt)
        swallowing(before, intended, fmt, intended)
    assert (figures.shape, figures.dtype) == ((2, len(FIGURES)), torch.float64)
    assert not figures.requires_grad
    assert torch.equal(before, copies[0])
    assert torch.equal(intended, copies[1])


@BY_NAME
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_element_gives_no_figure(fmt, shape):
    figures = swallowing(torch.ones(shape), torch.ones(shape), fmt)
    assert torch.equal(figures, torch.zeros(shape[0], len(FIGURES), dtype=torch.float64))


def test_shares_of_nothing_are_not_defined():
    found = update_shares([0.0] * len(FIGURES))
    assert found.pop("nonzero") == 0
    assert set(found.values()) == {None}


@pytest.mark.parametrize("fmt", ["int8", "e8m0", "tf32"])
def test_weights_are_not_stored_in_such_a_format(fmt):
    with pytest.raises(NumwatchError) as caught:
        swallowing(torch.ones(1, 1), torch.ones(1, 1), fmt)
    assert str(caught.value) == (
        "updates are judged for a format that weights can be stored in: fp32, bf16, fp16, e4m3, "
        f"e4m3fnuz, e5m2, e5m2fnuz, e3m2, e2m3, e2m1; got {fmt}"
    )
