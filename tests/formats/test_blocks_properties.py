"""The algebra of block scaling: idempotence, powers of two, order within a block."""

import torch
from grids import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from numwatch.formats import BLOCK_FORMATS, round_to_block_format

RULES = ("floor", "ceil", "even", "rceil")

moderate = st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda v: v == 0 or abs(v) > 2**-40)
blocks = st.lists(moderate, min_size=1, max_size=70).map(torch.tensor)
# Not NVFP4: the scale of a block may differ between the first rounding and the second.
cases = st.sampled_from(
    [
        (fmt.name, rule)
        for fmt in BLOCK_FORMATS.values()
        for rule in (RULES if fmt.is_mx else (None,))
        if fmt.name != "nvfp4"
    ]
)


@settings(deadline=None)
@given(blocks, cases)
def test_a_second_rounding_changes_nothing(x, case):
    name, rule = case
    once = round_to_block_format(x, name, scale_rule=rule)
    assert_same(round_to_block_format(once, name, scale_rule=rule), once)


@settings(deadline=None)
@given(blocks, cases, st.integers(-20, 20))
def test_a_power_of_two_passes_through(x, case, k):
    name, rule = case
    expected = round_to_block_format(x, name, scale_rule=rule) * 2.0**k
    assert_same(round_to_block_format(x * 2.0**k, name, scale_rule=rule), expected)


@settings(deadline=None)
@given(blocks, st.sampled_from(list(BLOCK_FORMATS)), st.randoms(use_true_random=False))
def test_the_order_within_a_block_does_not_matter(x, name, random):
    x = x[:16]
    order = list(range(x.numel()))
    random.shuffle(order)
    assert_same(round_to_block_format(x[order], name), round_to_block_format(x, name)[order])
