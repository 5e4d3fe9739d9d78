"""What of a module's call is its products', and what comes along."""

import torch
from torch import nn

from numwatch.taps.own import own_of


class Experts(nn.Module):
    """Four experts of width 8 and 16, and the router's weights beside."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(4, 8))
        self.up = nn.Parameter(torch.randn(4, 8, 16))
        self.down = nn.Parameter(torch.randn(4, 16, 8))


def test_experts_own_their_tokens_and_not_what_the_router_gave_or_gives():
    own = own_of(Experts())
    tokens, weights, given = torch.ones(5, 8), torch.ones(5, 4), torch.zeros(5, 8)
    assert own((tokens, weights), {"top": weights}, (given, weights)) == ((tokens,), {}, (given,))
    assert own((tokens,), {}, given) == ((tokens,), {}, given)


def test_where_nothing_is_as_wide_as_the_experts_all_is_taken_for_theirs():
    own = own_of(Experts())
    other = torch.ones(5, 3)
    assert own((other,), {}, (other,)) == ((other,), {}, (other,))
