"""The short way to a tensor's gradient is the one that torch offers."""

import copy

import pytest
import torch
from torch import nn

from numwatch.taps.hooks import Hook, hook_gradient


class Seen(Hook):
    def __init__(self):
        self.gradients = []

    def __call__(self, gradient):
        self.gradients.append(gradient.tolist())


def leaf():
    return torch.tensor([1.0, 2.0], requires_grad=True)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_it_lives_beside_hooks_of_the_user_s_own(first):
    ours, theirs = Seen(), Seen()
    x = leaf()
    y = x * 3
    handles = []
    for who in (first, "theirs" if first == "ours" else "ours"):
        handles += [hook_gradient(y, ours) if who == "ours" else y.register_hook(theirs)]
    (y * torch.tensor([1.0, 10.0])).sum().backward(retain_graph=True)
    assert ours.gradients == theirs.gradients == [[1.0, 10.0]]
    for handle in handles:
        if handle is not None:
            handle.remove()
    y.sum().backward()
    assert (len(ours.gradients), len(theirs.gradients)) == (2, 1)


def test_of_a_leaf_it_can_be_taken_off():
    seen, x = Seen(), nn.Parameter(torch.ones(2))
    handle = hook_gradient(x, seen)
    x.sum().backward()
    handle.remove()
    x.sum().backward()
    assert seen.gradients == [[1.0, 1.0]]
    assert not x._backward_hooks


def test_each_of_several_tensors_is_seen_by_one_hook():
    seen, x = Seen(), leaf()
    y, z = x * 2, x[...]
    assert hook_gradient(y, seen) is hook_gradient(z, seen) is None
    (y + 5 * z).sum().backward()
    assert sorted(seen.gradients) == [[1.0, 1.0], [5.0, 5.0]]
    assert x.grad.tolist() == [7.0, 7.0]


def test_a_hook_that_replaces_the_gradient_sees_ours_first():
    seen, x = Seen(), leaf()
    y = x * 1
    hook_gradient(y, seen)
    y.register_hook(lambda g: g * 100)
    y.sum().backward()
    assert seen.gradients == [[1.0, 1.0]]
    assert x.grad.tolist() == [100.0, 100.0]


def test_a_copy_of_a_hook_does_nothing():
    assert copy.deepcopy(Seen())(torch.ones(2)) is None
